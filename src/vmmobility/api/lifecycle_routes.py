"""The manager's API of a VM's on-boarding (Section 8.1): request, offer, confirmation.

A part of manager_api.py.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vmmobility.api import http
from vmmobility.api.declared import VNI_QUERY, ApiRole, declared
from vmmobility.api.errors import NotFound
from vmmobility.api.manager_schemas import CONFIRMATION, LIFE, NEW_VM
from vmmobility.api.service import ManagerService


class LifecycleRoutes:
    """Requests for VMs."""

    _service: ManagerService

    @declared(
        "POST",
        "/v1/vms",
        ApiRole.OPERATE,
        "ask for a VM; the answer is an offer of room, held for a while; 409 says what is short",
        answer=LIFE,
        status=202,
        body=NEW_VM,
        refusals=(404, 409),
    )
    async def create_vm(self, request: Request) -> Response:
        return JSONResponse(await self._service.create_vm(await http.body(request)), 202)

    @declared(
        "POST",
        "/v1/vms/{vm}/confirm",
        ApiRole.OPERATE,
        "take the offer, or less: the VM is brought up; one that failed is tried again",
        answer=LIFE,
        status=202,
        query=(VNI_QUERY,),
        body=CONFIRMATION,
        refusals=(404, 409),
    )
    async def confirm_vm(self, request: Request) -> Response:
        body = await http.body(request)
        return JSONResponse(await self._service.confirm_vm(http.vm_of(request), body), 202)

    @declared(
        "GET",
        "/v1/vms/{vm}/life",
        ApiRole.READ,
        "where the life of a VM stands that was asked for",
        answer=LIFE,
        query=(VNI_QUERY,),
        refusals=(404,),
    )
    async def life(self, request: Request) -> Response:
        vm = http.vm_of(request)
        found = self._service.life(vm)
        if found is None:
            raise NotFound(f"no request of VM {vm} is on record", "see `vmmob vm list`")
        return JSONResponse(found)
