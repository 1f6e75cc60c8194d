"""A router's API: routes to RouterService.  Not here: decisions.  Rests on http.py."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vmmobility.api import http
from vmmobility.api.common_schemas import CHECK, RULE
from vmmobility.api.declared import TIMEOUT_QUERY, ApiRole, declared
from vmmobility.api.node_schemas import LED_VM, ROUTER_STATUS
from vmmobility.api.schema import listed
from vmmobility.api.service import RouterService


class RouterRoutes(http.Described):
    title = "vmmobility: a router"

    def __init__(self, service: RouterService) -> None:
        self._service = service

    @declared("GET", "/v1/status", ApiRole.READ, "how the router is", answer=ROUTER_STATUS)
    async def status(self, _: Request) -> Response:
        return JSONResponse(self._service.status())

    @declared(
        "GET", "/v1/routes", ApiRole.READ, "the VMs that it leads or watches", answer=listed(LED_VM)
    )
    async def routes(self, _: Request) -> Response:
        return JSONResponse(self._service.routes())

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

    @declared(
        "GET",
        "/v1/explain/{address}",
        ApiRole.READ,
        "the rules and routes that lead the address there, in the order in which they are asked",
        answer=listed(RULE),
    )
    async def explain(self, request: Request) -> Response:
        return JSONResponse(self._service.explain(request.path_params["address"]))


def router_api(service: RouterService) -> Starlette:
    return http.application(RouterRoutes(service))
