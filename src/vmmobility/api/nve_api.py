"""An NVE's API: routes to NveService.  Not here: decisions.  Rests on http.py."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vmmobility.api import http
from vmmobility.api.errors import BadRequest
from vmmobility.api.service import Json, NveService


class _Routes:
    def __init__(self, service: NveService) -> None:
        self._service = service

    async def status(self, _: Request) -> Response:
        return JSONResponse(self._service.status())

    async def vms(self, _: Request) -> Response:
        return JSONResponse(await self._service.vms())

    async def start(self, request: Request) -> Response:
        return JSONResponse(await self._service.start_vm(await self._definition(request)))

    async def stop(self, request: Request) -> Response:
        return JSONResponse(await self._service.stop_vm(http.vm_of(request)))

    async def expect(self, request: Request) -> Response:
        return JSONResponse(await self._service.expect_vm(await self._definition(request)))

    async def forget(self, request: Request) -> Response:
        return JSONResponse(await self._service.unexpect_vm(http.vm_of(request)))

    async def check(self, request: Request) -> Response:
        limit_s = http.seconds_of(request, "timeout")
        return JSONResponse(await self._service.check(http.CHECK_S if limit_s is None else limit_s))

    async def alarms(self, _: Request) -> Response:
        return JSONResponse(self._service.alarms())

    @staticmethod
    async def _definition(request: Request) -> Json:
        """The body, a definition of the VM that the path names.  Raises BadRequest."""
        definition = await http.body(request)
        vm = http.vm_key(definition.get("vm_id"), definition.get("vni", 0))
        if vm.vm_id != request.path_params["vm"]:
            raise BadRequest(
                f"the path names VM {request.path_params['vm']}, the definition {vm.vm_id}",
                "send a definition to its own VM's path",
            )
        return definition


def nve_api(service: NveService) -> Starlette:
    routes = _Routes(service)
    return http.application(
        [
            Route("/v1/status", routes.status, methods=["GET"]),
            Route("/v1/vms", routes.vms, methods=["GET"]),
            Route("/v1/vms/{vm}", routes.start, methods=["PUT"]),
            Route("/v1/vms/{vm}", routes.stop, methods=["DELETE"]),
            Route("/v1/expected/{vm}", routes.expect, methods=["PUT"]),
            Route("/v1/expected/{vm}", routes.forget, methods=["DELETE"]),
            Route("/v1/check", routes.check, methods=["POST"]),
            Route("/v1/alarms", routes.alarms, methods=["GET"]),
        ]
    )
