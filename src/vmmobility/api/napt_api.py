"""A NAPT box's API: routes to NaptService.  Not here: decisions.  Rests on http.py."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vmmobility.api import http
from vmmobility.api.common_schemas import CHECK
from vmmobility.api.declared import TIMEOUT_QUERY, ApiRole, declared
from vmmobility.api.node_schemas import MAPPING, NAPT_STATUS
from vmmobility.api.schema import listed
from vmmobility.api.service import NaptService


class NaptRoutes(http.Described):
    title = "vmmobility: a NAPT box"

    def __init__(self, service: NaptService) -> None:
        self._service = service

    @declared("GET", "/v1/status", ApiRole.READ, "how the box is", answer=NAPT_STATUS)
    async def status(self, _: Request) -> Response:
        return JSONResponse(await self._service.status())

    @declared(
        "GET",
        "/v1/mappings",
        ApiRole.READ,
        "its mappings: NVEs first, then VMs",
        answer=listed(MAPPING),
    )
    async def mappings(self, _: Request) -> Response:
        return JSONResponse(self._service.mappings())

    @declared(
        "POST",
        "/v1/check",
        ApiRole.OPERATE,
        "compare its kernel with its record, and repair it",
        answer=CHECK,
        query=(TIMEOUT_QUERY,),
    )
    async def check(self, request: Request) -> Response:
        limit_s = http.seconds_of(request, "timeout")
        return JSONResponse(await self._service.check(http.CHECK_S if limit_s is None else limit_s))


def napt_api(service: NaptService) -> Starlette:
    return http.application(NaptRoutes(service))
