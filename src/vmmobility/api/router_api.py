"""A router's API: routes to RouterService.  Not here: decisions.  Rests on http.py."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vmmobility.api import http
from vmmobility.api.service import RouterService


class _Routes:
    def __init__(self, service: RouterService) -> None:
        self._service = service

    async def status(self, _: Request) -> Response:
        return JSONResponse(self._service.status())

    async def routes(self, _: Request) -> Response:
        return JSONResponse(self._service.routes())

    async def check(self, request: Request) -> Response:
        limit_s = http.seconds_of(request, "timeout")
        return JSONResponse(await self._service.check(http.CHECK_S if limit_s is None else limit_s))

    async def explain(self, request: Request) -> Response:
        return JSONResponse(self._service.explain(request.path_params["address"]))


def router_api(service: RouterService) -> Starlette:
    routes = _Routes(service)
    return http.application(
        [
            Route("/v1/status", routes.status, methods=["GET"]),
            Route("/v1/routes", routes.routes, methods=["GET"]),
            Route("/v1/check", routes.check, methods=["POST"]),
            Route("/v1/explain/{address}", routes.explain, methods=["GET"]),
        ]
    )
