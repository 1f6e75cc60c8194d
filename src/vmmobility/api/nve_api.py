"""An NVE's API: routes to NveService.  Not here: decisions.  Rests on http.py."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vmmobility.api import http
from vmmobility.api.errors import BadRequest
from vmmobility.api.service import NveService


class _Routes:
    def __init__(self, service: NveService) -> None:
        self._service = service

    async def status(self, _: Request) -> Response:
        return JSONResponse(self._service.status())

    async def vms(self, _: Request) -> Response:
        return JSONResponse(await self._service.vms())

    async def start(self, request: Request) -> Response:
        definition = await http.body(request)
        vm = http.vm_key(definition.get("vm_id"), definition.get("vni", 0))
        if vm.vm_id != request.path_params["vm"]:
            raise BadRequest(
                f"the path names VM {request.path_params['vm']}, the definition {vm.vm_id}",
                "send a definition to its own VM's path",
            )
        return JSONResponse(await self._service.start_vm(definition))

    async def stop(self, request: Request) -> Response:
        return JSONResponse(await self._service.stop_vm(http.vm_of(request)))


def nve_api(service: NveService) -> Starlette:
    routes = _Routes(service)
    return http.application(
        [
            Route("/v1/status", routes.status, methods=["GET"]),
            Route("/v1/vms", routes.vms, methods=["GET"]),
            Route("/v1/vms/{vm}", routes.start, methods=["PUT"]),
            Route("/v1/vms/{vm}", routes.stop, methods=["DELETE"]),
        ]
    )
