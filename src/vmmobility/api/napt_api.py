"""A NAPT box's API: routes to NaptService.  Not here: decisions.  Rests on http.py."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vmmobility.api import http
from vmmobility.api.service import NaptService


class _Routes:
    def __init__(self, service: NaptService) -> None:
        self._service = service

    async def status(self, _: Request) -> Response:
        return JSONResponse(await self._service.status())

    async def mappings(self, _: Request) -> Response:
        return JSONResponse(self._service.mappings())

    async def check(self, request: Request) -> Response:
        limit_s = http.seconds_of(request, "timeout")
        return JSONResponse(await self._service.check(http.CHECK_S if limit_s is None else limit_s))


def napt_api(service: NaptService) -> Starlette:
    routes = _Routes(service)
    return http.application(
        [
            Route("/v1/status", routes.status, methods=["GET"]),
            Route("/v1/mappings", routes.mappings, methods=["GET"]),
            Route("/v1/check", routes.check, methods=["POST"]),
        ]
    )
