"""The manager's API for load-shared groups.  Not here: its other routes (manager_api.py)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vmmobility.api import http
from vmmobility.api.declared import ApiRole, declared
from vmmobility.api.manager_schemas import GROUP, NEW_GROUP
from vmmobility.api.schema import listed
from vmmobility.api.service import ManagerService


class GroupRoutes:
    """A part of ManagerRoutes."""

    _service: ManagerService

    @declared("GET", "/v1/groups", ApiRole.READ, "load-shared groups", answer=listed(GROUP))
    async def groups(self, _: Request) -> Response:
        return JSONResponse(self._service.groups())

    @declared(
        "PUT",
        "/v1/groups/{group}",
        ApiRole.ADMIN,
        "declare a group, or change its members (VM-IDs and their numbers), durable",
        answer=GROUP,
        body=NEW_GROUP,
        refusals=(404, 409),
    )
    async def declare_group(self, request: Request) -> Response:
        body = await http.body(request)
        name = http.name_of(request.path_params["group"], "group", "name it as a VM")
        vni, members = body.get("vni", 0), body["members"]
        for vm in members:
            http.vm_key(vm, vni)
        return JSONResponse(await self._service.declare_group(name, vni, members))

    @declared(
        "DELETE",
        "/v1/groups/{group}",
        ApiRole.ADMIN,
        "take a group back; the group that there was",
        answer=GROUP,
        refusals=(404, 409),
    )
    async def delete_group(self, request: Request) -> Response:
        return JSONResponse(await self._service.delete_group(request.path_params["group"]))
