"""The manager's routes of drains and cordons; a part of manager_api.ManagerRoutes.

Not here: decisions.  Rests on http.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vmmobility.api import http
from vmmobility.api.declared import WAIT_QUERY, ApiRole, declared
from vmmobility.api.drain_schemas import CORDON, DRAIN, DRAIN_WITH_VMS, NEW_DRAIN
from vmmobility.api.errors import NotFound
from vmmobility.api.schema import listed

if TYPE_CHECKING:
    from vmmobility.api.service import DrainService

PARALLEL = 4  # moves at once unless the asker says otherwise
NAME_IT = "name NVEs as in `vmmob show nves`"


class DrainRoutes:
    """Routes to DrainService."""

    if TYPE_CHECKING:
        _drains: DrainService

    @declared(
        "GET",
        "/v1/drains",
        ApiRole.READ,
        "drains under way and the latest that have ended, oldest first",
        answer=listed(DRAIN),
    )
    async def drains(self, _: Request) -> Response:
        return JSONResponse(self._drains.drains())

    @declared(
        "POST",
        "/v1/drains",
        ApiRole.OPERATE,
        "empty an NVE: move all its VMs elsewhere; one under way goes on, with these values",
        answer=DRAIN_WITH_VMS,
        status=202,
        body=NEW_DRAIN,
        refusals=(404, 409),
    )
    async def start_drain(self, request: Request) -> Response:
        body = await http.body(request)
        nve = http.name_of(body["nve"], "nve", NAME_IT)
        to = [http.name_of(name, "to", NAME_IT) for name in body.get("to", [])]
        parallel, uncordon = body.get("parallel", PARALLEL), body.get("uncordon", False)
        return JSONResponse(await self._drains.start_drain(nve, to, parallel, uncordon), 202)

    @declared(
        "GET",
        "/v1/drains/{id}",
        ApiRole.READ,
        "one drain and its VMs; with `wait` once it has ended, or after so many seconds",
        answer=DRAIN_WITH_VMS,
        query=(WAIT_QUERY,),
        refusals=(404,),
    )
    async def drain(self, request: Request) -> Response:
        id = request.path_params["id"]
        seconds = http.seconds_of(request, "wait")
        if seconds is None:
            drain = self._drains.drain(id)
        else:
            drain = await http.while_asked(request, self._drains.wait_drain(id, seconds))
        if drain is None:
            raise NotFound(f"no drain {id}", "list them with `vmmob drain list`")
        return JSONResponse(drain)

    @declared(
        "POST",
        "/v1/drains/{id}/abort",
        ApiRole.OPERATE,
        "begin no more of its moves; those under way go on",
        answer=DRAIN_WITH_VMS,
        status=202,
        refusals=(404, 409),
    )
    async def abort_drain(self, request: Request) -> Response:
        return JSONResponse(await self._drains.abort_drain(request.path_params["id"]), 202)

    @declared(
        "PUT",
        "/v1/nves/{nve}/cordon",
        ApiRole.OPERATE,
        "let no VM begin there and none be moved there, until that is lifted",
        answer=CORDON,
        refusals=(404,),
    )
    async def cordon(self, request: Request) -> Response:
        return JSONResponse(await self._drains.cordon(self._nve(request)))

    @declared(
        "DELETE",
        "/v1/nves/{nve}/cordon",
        ApiRole.OPERATE,
        "let VMs come again; 409 while a drain empties it",
        answer=CORDON,
        refusals=(404, 409),
    )
    async def uncordon(self, request: Request) -> Response:
        return JSONResponse(await self._drains.uncordon(self._nve(request)))

    @staticmethod
    def _nve(request: Request) -> str:
        return http.name_of(request.path_params["nve"], "nve", NAME_IT)
