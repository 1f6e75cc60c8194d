"""The manager's routes of warm standbys; a part of manager_api.ManagerRoutes.

Not here: decisions.  Rests on http.py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vmmobility.api import http
from vmmobility.api.declared import VNI_QUERY, ApiRole, declared
from vmmobility.api.protection_schemas import NEW_PROTECTION, PROTECTION
from vmmobility.api.schema import listed
from vmmobility.errors import BadRequest

if TYPE_CHECKING:
    from vmmobility.api.service import ProtectionService

EVERY_S = 5.0  # between two checkpoints unless the asker says otherwise
DAY_S = 86_400.0
TIME_OF_DAY = re.compile(r"([01]\d|2[0-3]):[0-5]\d", re.ASCII)
COLD_FROM_S = 60.0  # from such an interval on nobody takes over unless the asker says so


class ProtectionRoutes:
    """Routes to ProtectionService."""

    if TYPE_CHECKING:
        _protections: ProtectionService

    @declared(
        "GET",
        "/v1/protected",
        ApiRole.READ,
        "the VMs that have a warm standby, and how old its last checkpoint is",
        answer=listed(PROTECTION),
    )
    async def protected(self, _: Request) -> Response:
        return JSONResponse(self._protections.protected())

    @declared(
        "POST",
        "/v1/vms/{vm}/protection",
        ApiRole.OPERATE,
        "keep checkpoints of a VM at another NVE; with `fail_over` that takes over, should it fail",
        answer=PROTECTION,
        status=202,
        body=NEW_PROTECTION,
        refusals=(404, 409),
    )
    async def protect(self, request: Request) -> Response:
        body = await http.body(request)
        vm = http.vm_key(request.path_params["vm"], body.get("vni", 0))
        to = http.name_of(body.get("to"), "to", "give the standby's name")
        at = body.get("at")
        if at is not None and "every_s" in body:
            raise BadRequest("`at` and `every_s` exclude each other", "give one of them")
        if at is not None and not TIME_OF_DAY.fullmatch(at):
            raise BadRequest(f"at: {at!r} is no time of day", 'give "HH:MM", UTC')
        every = float(body.get("every_s", EVERY_S if at is None else DAY_S))
        fail_over = bool(body.get("fail_over", every < COLD_FROM_S))
        lease = body.get("lease_s")
        made = await self._protections.protect(vm, to, every, fail_over, lease, at)
        return JSONResponse(made, 202)

    @declared(
        "DELETE",
        "/v1/vms/{vm}/protection",
        ApiRole.OPERATE,
        "protect it no more; 409 while its standby takes over",
        answer=PROTECTION,
        query=(VNI_QUERY,),
        refusals=(404, 409),
    )
    async def unprotect(self, request: Request) -> Response:
        return JSONResponse(await self._protections.unprotect(http.vm_of(request)))
