"""An NVE's API: routes to NveService.  Not here: decisions.  Rests on http.py."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vmmobility.api import http
from vmmobility.api.common_schemas import ALARM, CHECK
from vmmobility.api.declared import TIMEOUT_QUERY, VNI_QUERY, ApiRole, Query, declared
from vmmobility.api.errors import BadRequest
from vmmobility.api.node_schemas import DEFINITION, LOCAL_VM, NVE_STATUS
from vmmobility.api.schema import TEXT, listed
from vmmobility.api.service import Json, NveService

SERVER_QUERY = Query("server", TEXT, "the server of this NVE that it is started at; any")


class NveRoutes(http.Described):
    title = "vmmobility: an NVE"

    def __init__(self, service: NveService) -> None:
        self._service = service

    @declared("GET", "/v1/status", ApiRole.READ, "how the NVE is", answer=NVE_STATUS)
    async def status(self, _: Request) -> Response:
        return JSONResponse(self._service.status())

    @declared(
        "GET",
        "/v1/vms",
        ApiRole.READ,
        "local, redirected, prepared and expected VMs",
        answer=listed(LOCAL_VM),
    )
    async def vms(self, _: Request) -> Response:
        return JSONResponse(await self._service.vms())

    @declared(
        "PUT",
        "/v1/vms/{vm}",
        ApiRole.ADMIN,
        "define and start it, then attach; answered once it is registered",
        answer=LOCAL_VM,
        body=DEFINITION,
        query=(SERVER_QUERY,),
        refusals=(404, 409),
    )
    async def start(self, request: Request) -> Response:
        definition = await self._definition(request)
        server = request.query_params.get("server", "")
        return JSONResponse(await self._service.start_vm(definition, server))

    @declared(
        "DELETE",
        "/v1/vms/{vm}",
        ApiRole.ADMIN,
        "end the guest, deregister",
        answer=LOCAL_VM,
        query=(VNI_QUERY,),
        refusals=(404, 409),
    )
    async def stop(self, request: Request) -> Response:
        return JSONResponse(await self._service.stop_vm(http.vm_of(request)))

    @declared(
        "POST",
        "/v1/vms/{vm}/relocate",
        ApiRole.OPERATE,
        "move it to another server of this NVE; answered once it runs there",
        answer=LOCAL_VM,
        query=(VNI_QUERY, SERVER_QUERY),
        refusals=(404, 409),
    )
    async def relocate(self, request: Request) -> Response:
        server = request.query_params.get("server", "")
        return JSONResponse(await self._service.relocate_vm(http.vm_of(request), server))

    @declared(
        "PUT",
        "/v1/expected/{vm}",
        ApiRole.ADMIN,
        "plug the taps of a VM of kind `external` and watch for its guest",
        answer=LOCAL_VM,
        body=DEFINITION,
        refusals=(404, 409),
    )
    async def expect(self, request: Request) -> Response:
        return JSONResponse(await self._service.expect_vm(await self._definition(request)))

    @declared(
        "DELETE",
        "/v1/expected/{vm}",
        ApiRole.ADMIN,
        "watch no longer, unplug; 409 while its guest is here",
        answer=LOCAL_VM,
        query=(VNI_QUERY,),
        refusals=(404, 409),
    )
    async def forget(self, request: Request) -> Response:
        return JSONResponse(await self._service.unexpect_vm(http.vm_of(request)))

    @declared(
        "POST",
        "/v1/check",
        ApiRole.OPERATE,
        "compare the list, the kernel and the guests of this host",
        answer=CHECK,
        query=(TIMEOUT_QUERY,),
    )
    async def check(self, request: Request) -> Response:
        limit_s = http.seconds_of(request, "timeout")
        return JSONResponse(await self._service.check(http.CHECK_S if limit_s is None else limit_s))

    @declared("GET", "/v1/alarms", ApiRole.READ, "what wants a person now", answer=listed(ALARM))
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
    return http.application(NveRoutes(service))
