"""The manager's API about guests: start, resume, suspend, stop, delete.  A part of manager_api.py.

Each answers as soon as the order is durable; `guest_ordered` of the VM says what is not done yet.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vmmobility.api import http
from vmmobility.api.declared import VNI_QUERY, ApiRole, Query, declared
from vmmobility.api.errors import BadRequest
from vmmobility.api.manager_schemas import BINDING
from vmmobility.api.schema import NUMBER, choice
from vmmobility.api.service import ManagerService

FORCE_QUERY = Query("force", choice("0", "1"), "1: at once; what the guest has in memory is lost")
GRACE_QUERY = Query(
    "grace", NUMBER, "seconds that it may take to shut itself down; 60 unless given"
)


class GuestRoutes:
    """Orders about guests."""

    _service: ManagerService

    @declared(
        "POST",
        "/v1/vms/{vm}/start",
        ApiRole.OPERATE,
        "boot a VM that is stopped, where it is",
        answer=BINDING,
        status=202,
        query=(VNI_QUERY,),
        refusals=(404, 409),
    )
    async def start_guest(self, request: Request) -> Response:
        return await self._order(request, "start")

    @declared(
        "POST",
        "/v1/vms/{vm}/resume",
        ApiRole.OPERATE,
        "let a VM go on that is suspended",
        answer=BINDING,
        status=202,
        query=(VNI_QUERY,),
        refusals=(404, 409),
    )
    async def resume_guest(self, request: Request) -> Response:
        return await self._order(request, "resume")

    @declared(
        "POST",
        "/v1/vms/{vm}/suspend",
        ApiRole.OPERATE,
        "stop a VM's CPUs and keep its memory",
        answer=BINDING,
        status=202,
        query=(VNI_QUERY,),
        refusals=(404, 409),
    )
    async def suspend_guest(self, request: Request) -> Response:
        return await self._order(request, "suspend")

    @declared(
        "POST",
        "/v1/vms/{vm}/stop",
        ApiRole.OPERATE,
        "shut a VM down; it stays at its NVE, with its disks and addresses",
        answer=BINDING,
        status=202,
        query=(VNI_QUERY, FORCE_QUERY, GRACE_QUERY),
        refusals=(404, 409),
    )
    async def stop_guest(self, request: Request) -> Response:
        return await self._order(request, "stop")

    @declared(
        "DELETE",
        "/v1/vms/{vm}",
        ApiRole.OPERATE,
        "end a VM for good; it is done when there is no such VM any more",
        answer=BINDING,
        status=202,
        query=(VNI_QUERY, FORCE_QUERY),
        refusals=(404, 409),
    )
    async def delete_guest(self, request: Request) -> Response:
        return await self._order(request, "delete")

    async def _order(self, request: Request, verb: str) -> Response:
        force = request.query_params.get("force", "0")
        if force not in ("0", "1"):
            raise BadRequest(f"force: {force!r}", "use 0 or 1")
        seconds = http.seconds_of(request, "grace")
        grace_s = None if seconds is None else int(seconds)
        vm = http.vm_of(request)
        return JSONResponse(await self._service.order_guest(vm, verb, force == "1", grace_s), 202)
