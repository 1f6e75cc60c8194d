"""The manager's API: routes to ManagerService.  Not here: decisions.  Rests on http.py."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vmmobility.api import http
from vmmobility.api.errors import BadRequest, NotFound
from vmmobility.api.service import Json, ManagerService
from vmmobility.wire.formats import check_name
from vmmobility.wire.values import VmKey


class _Routes:
    def __init__(self, service: ManagerService) -> None:
        self._service = service

    async def status(self, _: Request) -> Response:
        return JSONResponse(self._service.status())

    async def bindings(self, _: Request) -> Response:
        return JSONResponse(self._service.bindings())

    async def binding(self, request: Request) -> Response:
        return JSONResponse(self._binding(http.vm_of(request)))

    async def release(self, request: Request) -> Response:
        return JSONResponse(await self._service.release(http.vm_of(request)))

    async def vms(self, _: Request) -> Response:
        moves = self._last_moves()
        return JSONResponse([self._vm(binding, moves) for binding in self._service.bindings()])

    async def vm(self, request: Request) -> Response:
        binding = self._binding(http.vm_of(request))
        return JSONResponse(self._vm(binding, self._last_moves()))

    async def nves(self, _: Request) -> Response:
        return JSONResponse(self._service.nves())

    async def moves(self, _: Request) -> Response:
        return JSONResponse(self._service.moves())

    async def move(self, request: Request) -> Response:
        id = request.path_params["id"]
        seconds = http.wait_of(request)
        if seconds is None:
            move = self._service.move(id)
        else:
            move = await self._service.wait_move(id, seconds)
        if move is None:
            raise NotFound(f"no move {id}", "list them with `vmmob show moves`")
        return JSONResponse(move)

    async def start_move(self, request: Request) -> Response:
        body = await http.body(request)
        unknown = sorted(set(body) - {"vm", "vni", "to"})
        if unknown:
            raise BadRequest(f"unknown key {unknown[0]!r}", "send vm, vni and to")
        vm = http.vm_key(body.get("vm"), body.get("vni", 0))
        to = body.get("to")
        try:
            check_name(to if isinstance(to, str) else "")
        except ValueError as error:
            raise BadRequest(f"to: no NVE-ID: {error}", "give the destination's name") from None
        return JSONResponse(await self._service.start_move(vm, str(to)), 202)

    def _binding(self, vm: VmKey) -> Json:
        binding = self._service.binding(vm)
        if binding is None:
            raise NotFound(f"no binding for VM {vm}", "list them with `vmmob vm list`")
        return binding

    def _last_moves(self) -> dict[tuple[int, str], Json]:
        return {(move["vni"], move["vm"]): move for move in self._service.moves()}

    @staticmethod
    def _vm(binding: Json, moves: dict[tuple[int, str], Json]) -> Json:
        return {**binding, "move": moves.get((binding["vni"], binding["vm"]))}


def manager_api(service: ManagerService) -> Starlette:
    routes = _Routes(service)
    return http.application(
        [
            Route("/v1/status", routes.status, methods=["GET"]),
            Route("/v1/bindings", routes.bindings, methods=["GET"]),
            Route("/v1/bindings/{vm}", routes.binding, methods=["GET"]),
            Route("/v1/bindings/{vm}/release", routes.release, methods=["POST"]),
            Route("/v1/vms", routes.vms, methods=["GET"]),
            Route("/v1/vms/{vm}", routes.vm, methods=["GET"]),
            Route("/v1/nves", routes.nves, methods=["GET"]),
            Route("/v1/moves", routes.moves, methods=["GET"]),
            Route("/v1/moves", routes.start_move, methods=["POST"]),
            Route("/v1/moves/{id}", routes.move, methods=["GET"]),
        ]
    )
