"""The manager's API: routes to ManagerService.  Not here: decisions.  Rests on http.py."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vmmobility.api import http
from vmmobility.api.errors import BadRequest, NotFound
from vmmobility.api.service import Json, ManagerService
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
        """`?fenced=NVE`: the operator's word that this NVE's host is fenced."""
        fenced = request.query_params.get("fenced")
        if fenced is not None:
            http.name_of(fenced, "fenced", "name the NVE whose host is fenced")
        return JSONResponse(await self._service.release(http.vm_of(request), fenced or ""))

    async def onboarded(self, _: Request) -> Response:
        return JSONResponse(self._service.onboarded())

    async def onboard(self, request: Request) -> Response:
        body = await http.body(request)
        _only(body, "vm_id", "vni", "interfaces", "nves")
        vm = http.vm_key(body.get("vm_id"), body.get("vni", 0))
        if vm.vm_id != request.path_params["vm"]:
            raise BadRequest(
                f"the path names VM {request.path_params['vm']}, the body {vm.vm_id}",
                "send a VM to its own path",
            )
        nves = body.get("nves", [])
        if not isinstance(nves, list):
            raise BadRequest("nves: no list", 'send ["NVE", …], or [] for any NVE')
        names = [http.name_of(nve, "nves", "name NVEs as in `vmmob show nves`") for nve in nves]
        return JSONResponse(await self._service.onboard(vm, body.get("interfaces"), names))

    async def offboard(self, request: Request) -> Response:
        return JSONResponse(await self._service.offboard(http.vm_of(request)))

    async def check(self, request: Request) -> Response:
        limit_s = http.seconds_of(request, "timeout")
        return JSONResponse(await self._service.check(http.CHECK_S if limit_s is None else limit_s))

    async def trace(self, request: Request) -> Response:
        """`?from=NODE`: where the packets begin."""
        start = request.query_params.get("from")
        if start is not None:
            http.name_of(start, "from", "name an NVE or a router")
        limit_s = http.seconds_of(request, "timeout")
        seconds = http.TRACE_S if limit_s is None else limit_s
        address = request.path_params["address"]
        return JSONResponse(await self._service.trace(address, start or "", seconds))

    async def alarms(self, _: Request) -> Response:
        return JSONResponse(self._service.alarms())

    async def vms(self, _: Request) -> Response:
        moves = self._last_moves()
        return JSONResponse([self._vm(binding, moves) for binding in self._service.bindings()])

    async def vm(self, request: Request) -> Response:
        binding = self._binding(http.vm_of(request))
        return JSONResponse(self._vm(binding, self._last_moves()))

    async def routers(self, _: Request) -> Response:
        return JSONResponse(self._service.routers())

    async def routes(self, _: Request) -> Response:
        return JSONResponse(self._service.routes())

    async def nves(self, _: Request) -> Response:
        return JSONResponse(self._service.nves())

    async def moves(self, _: Request) -> Response:
        return JSONResponse(self._service.moves())

    async def move(self, request: Request) -> Response:
        id = request.path_params["id"]
        seconds = http.seconds_of(request, "wait")
        if seconds is None:
            move = self._service.move(id)
        else:
            move = await self._service.wait_move(id, seconds)
        if move is None:
            raise NotFound(f"no move {id}", "list them with `vmmob show moves`")
        return JSONResponse(move)

    async def start_move(self, request: Request) -> Response:
        body = await http.body(request)
        _only(body, "vm", "vni", "to")
        vm = http.vm_key(body.get("vm"), body.get("vni", 0))
        to = http.name_of(body.get("to"), "to", "give the destination's name")
        return JSONResponse(await self._service.start_move(vm, to), 202)

    async def abort_move(self, request: Request) -> Response:
        return JSONResponse(await self._service.abort_move(request.path_params["id"]), 202)

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


def _only(body: Json, *known: str) -> None:
    unknown = sorted(set(body) - set(known))
    if unknown:
        listed = f"{', '.join(known[:-1])} and {known[-1]}"
        raise BadRequest(f"unknown key {unknown[0]!r}", f"send {listed}")


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
            Route("/v1/routers", routes.routers, methods=["GET"]),
            Route("/v1/routes", routes.routes, methods=["GET"]),
            Route("/v1/nves", routes.nves, methods=["GET"]),
            Route("/v1/moves", routes.moves, methods=["GET"]),
            Route("/v1/moves", routes.start_move, methods=["POST"]),
            Route("/v1/moves/{id}", routes.move, methods=["GET"]),
            Route("/v1/moves/{id}/abort", routes.abort_move, methods=["POST"]),
            Route("/v1/onboarded", routes.onboarded, methods=["GET"]),
            Route("/v1/onboarded/{vm}", routes.onboard, methods=["PUT"]),
            Route("/v1/onboarded/{vm}", routes.offboard, methods=["DELETE"]),
            Route("/v1/check", routes.check, methods=["POST"]),
            Route("/v1/trace/{address}", routes.trace, methods=["GET"]),
            Route("/v1/alarms", routes.alarms, methods=["GET"]),
        ]
    )
