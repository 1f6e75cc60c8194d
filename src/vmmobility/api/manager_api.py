"""The manager's API: routes to ManagerService.  Not here: decisions.  Rests on http.py."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vmmobility.api import http
from vmmobility.api.common_schemas import ALARM
from vmmobility.api.declared import (
    TIMEOUT_QUERY,
    VNI_QUERY,
    WAIT_QUERY,
    ApiRole,
    Query,
    declared,
)
from vmmobility.api.drain_routes import DrainRoutes
from vmmobility.api.errors import BadRequest, NotFound
from vmmobility.api.event_routes import EventRoutes
from vmmobility.api.group_api import GroupRoutes
from vmmobility.api.guest_routes import GuestRoutes
from vmmobility.api.lifecycle_routes import LifecycleRoutes
from vmmobility.api.manager_schemas import (
    BINDING,
    CHECK,
    MANAGER_STATUS,
    MOVE,
    NEW_MOVE,
    NEW_ONBOARDED,
    NVE,
    ONBOARDED,
    ROUTE,
    ROUTER,
    TRACE,
    VM,
)
from vmmobility.api.protection_routes import ProtectionRoutes
from vmmobility.api.schema import NAME, listed
from vmmobility.api.service import Json, ManagerService
from vmmobility.wire import move_terms
from vmmobility.wire.values import VmKey

FENCED_QUERY = Query("fenced", NAME, "the NVE whose host is fenced")
FROM_QUERY = Query("from", NAME, "the node where the packets begin")


class ManagerRoutes(
    http.Described,
    DrainRoutes,
    EventRoutes,
    GroupRoutes,
    GuestRoutes,
    LifecycleRoutes,
    ProtectionRoutes,
):
    title = "vmmobility: the manager"

    def __init__(self, service: ManagerService) -> None:
        self._service = self._drains = self._events = self._protections = service

    @declared("GET", "/v1/status", ApiRole.READ, "how the manager is", answer=MANAGER_STATUS)
    async def status(self, _: Request) -> Response:
        return JSONResponse(self._service.status())

    @declared(
        "GET", "/v1/bindings", ApiRole.READ, "which NVE serves which VM", answer=listed(BINDING)
    )
    async def bindings(self, _: Request) -> Response:
        return JSONResponse(self._service.bindings())

    @declared(
        "GET",
        "/v1/bindings/{vm}",
        ApiRole.READ,
        "that of one VM",
        answer=BINDING,
        query=(VNI_QUERY,),
        refusals=(404,),
    )
    async def binding(self, request: Request) -> Response:
        return JSONResponse(self._binding(http.vm_of(request)))

    @declared(
        "POST",
        "/v1/bindings/{vm}/release",
        ApiRole.ADMIN,
        "thaw a frozen binding; with `fenced`: an operator's word that this NVE's host is fenced",
        answer=BINDING,
        query=(VNI_QUERY, FENCED_QUERY),
        refusals=(404, 409),
    )
    async def release(self, request: Request) -> Response:
        """`?fenced=NVE`: the operator's word that this NVE's host is fenced."""
        fenced = request.query_params.get("fenced")
        if fenced is not None:
            http.name_of(fenced, "fenced", "name the NVE whose host is fenced")
        return JSONResponse(await self._service.release(http.vm_of(request), fenced or ""))

    @declared("GET", "/v1/onboarded", ApiRole.READ, "the VMs on record", answer=listed(ONBOARDED))
    async def onboarded(self, _: Request) -> Response:
        return JSONResponse(self._service.onboarded())

    @declared(
        "PUT",
        "/v1/onboarded/{vm}",
        ApiRole.ADMIN,
        "put a VM on record, durable",
        answer=ONBOARDED,
        body=NEW_ONBOARDED,
        refusals=(404, 409),
    )
    async def onboard(self, request: Request) -> Response:
        body = await http.body(request)
        vm = http.vm_key(body.get("vm_id"), body.get("vni", 0))
        if vm.vm_id != request.path_params["vm"]:
            raise BadRequest(
                f"the path names VM {request.path_params['vm']}, the body {vm.vm_id}",
                "send a VM to its own path",
            )
        nves = body.get("nves", [])
        names = [http.name_of(nve, "nves", "name NVEs as in `vmmob show nves`") for nve in nves]
        return JSONResponse(await self._service.onboard(vm, body.get("interfaces"), names))

    @declared(
        "DELETE",
        "/v1/onboarded/{vm}",
        ApiRole.ADMIN,
        "take it off the record; the record that there was",
        answer=ONBOARDED,
        query=(VNI_QUERY,),
        refusals=(404, 409),
    )
    async def offboard(self, request: Request) -> Response:
        return JSONResponse(await self._service.offboard(http.vm_of(request)))

    @declared(
        "POST",
        "/v1/check",
        ApiRole.OPERATE,
        "compare bindings and redirects with every NVE",
        answer=CHECK,
        query=(TIMEOUT_QUERY,),
    )
    async def check(self, request: Request) -> Response:
        limit_s = http.seconds_of(request, "timeout")
        return JSONResponse(await self._service.check(http.CHECK_S if limit_s is None else limit_s))

    @declared(
        "GET",
        "/v1/trace/{address}",
        ApiRole.READ,
        "where packets for an address go, and what is wrong with that",
        answer=TRACE,
        query=(FROM_QUERY, TIMEOUT_QUERY),
        refusals=(404,),
    )
    async def trace(self, request: Request) -> Response:
        """`?from=NODE`: where the packets begin."""
        start = request.query_params.get("from")
        if start is not None:
            http.name_of(start, "from", "name an NVE or a router")
        limit_s = http.seconds_of(request, "timeout")
        seconds = http.TRACE_S if limit_s is None else limit_s
        address = request.path_params["address"]
        return JSONResponse(await self._service.trace(address, start or "", seconds))

    @declared("GET", "/v1/alarms", ApiRole.READ, "what wants a person now", answer=listed(ALARM))
    async def alarms(self, _: Request) -> Response:
        return JSONResponse(self._service.alarms())

    @declared(
        "GET",
        "/v1/vms",
        ApiRole.READ,
        "VMs: bindings and requests, each with its last move and its life",
        answer=listed(VM),
    )
    async def vms(self, _: Request) -> Response:
        moves = self._last_moves()
        lives = {(life["vni"], life["vm"]): life for life in self._service.lives()}
        rows = [*self._service.bindings(), *self._service.unbound()]
        rows.sort(key=lambda row: (row["vni"], row["vm"]))
        return JSONResponse([self._vm(row, moves, lives) for row in rows])

    @declared(
        "GET",
        "/v1/vms/{vm}",
        ApiRole.READ,
        "one of them",
        answer=VM,
        query=(VNI_QUERY,),
        refusals=(404,),
    )
    async def vm(self, request: Request) -> Response:
        vm = http.vm_of(request)
        life = self._service.life(vm)
        unbound = [
            row for row in self._service.unbound() if (row["vni"], row["vm"]) == (vm.vni, vm.vm_id)
        ]
        row = unbound[0] if unbound else self._binding(vm)
        lives = {(vm.vni, vm.vm_id): life} if life is not None else {}
        return JSONResponse(self._vm(row, self._last_moves(), lives))

    @declared(
        "GET",
        "/v1/routers",
        ApiRole.READ,
        "the routers of the configuration",
        answer=listed(ROUTER),
    )
    async def routers(self, _: Request) -> Response:
        return JSONResponse(self._service.routers())

    @declared(
        "GET",
        "/v1/routes",
        ApiRole.READ,
        "what each router was told of each VM, and what it says of the fabric",
        answer=listed(ROUTE),
    )
    async def routes(self, _: Request) -> Response:
        return JSONResponse(self._service.routes())

    @declared("GET", "/v1/nves", ApiRole.READ, "the NVEs of the configuration", answer=listed(NVE))
    async def nves(self, _: Request) -> Response:
        return JSONResponse(self._service.nves())

    @declared(
        "GET",
        "/v1/moves",
        ApiRole.READ,
        "the moves that are remembered, oldest first",
        answer=listed(MOVE),
    )
    async def moves(self, _: Request) -> Response:
        return JSONResponse(self._service.moves())

    @declared(
        "GET",
        "/v1/moves/{id}",
        ApiRole.READ,
        "one move; with `wait` once it has ended, or after so many seconds",
        answer=MOVE,
        query=(WAIT_QUERY,),
        refusals=(404,),
    )
    async def move(self, request: Request) -> Response:
        id = request.path_params["id"]
        seconds = http.seconds_of(request, "wait")
        if seconds is None:
            move = self._service.move(id)
        else:
            move = await http.while_asked(request, self._service.wait_move(id, seconds))
        if move is None:
            raise NotFound(f"no move {id}", "list them with `vmmob move list`")
        return JSONResponse(move)

    @declared(
        "POST",
        "/v1/moves",
        ApiRole.OPERATE,
        "begin a move",
        answer=MOVE,
        status=202,
        body=NEW_MOVE,
        refusals=(404, 409),
    )
    async def start_move(self, request: Request) -> Response:
        body = await http.body(request)
        vm = http.vm_key(body.get("vm"), body.get("vni", 0))
        to = http.name_of(body.get("to"), "to", "give the destination's name")
        try:
            mode = str(body.pop("mode", ""))
            server = body.pop("server", None)
            if server is not None:
                http.name_of(server, "server", "name one of the NVE's servers, or none")
            terms = move_terms.terms_from_json(body)
        except ValueError as error:
            raise BadRequest(f"terms of a move: {error}", "see docs/architecture.md, API") from None
        return JSONResponse(await self._service.start_move(vm, to, terms, mode, server or ""), 202)

    @declared(
        "POST",
        "/v1/moves/{id}/abort",
        ApiRole.OPERATE,
        "give a move up; 409 where that is too late",
        answer=MOVE,
        status=202,
        refusals=(404, 409),
    )
    async def abort_move(self, request: Request) -> Response:
        return JSONResponse(await self._service.abort_move(request.path_params["id"]), 202)

    def _binding(self, vm: VmKey) -> Json:
        binding = self._service.binding(vm)
        if binding is None:
            raise NotFound(f"no binding for VM {vm}", "list them with `vmmob vm list`")
        return binding

    def _last_moves(self) -> dict[tuple[int, str], Json]:
        return {(move["vni"], move["vm"]): move for move in self._service.moves()}

    def _protection(self, key: tuple[int, str]) -> Json | None:
        rows = self._service.protected()
        return next((row for row in rows if (row["vni"], row["vm"]) == key), None)

    def _vm(
        self, binding: Json, moves: dict[tuple[int, str], Json], lives: dict[tuple[int, str], Json]
    ) -> Json:
        key = (binding["vni"], binding["vm"])
        return {
            **binding,
            "move": moves.get(key),
            "lifecycle": lives.get(key),
            "protection": self._protection(key),
        }


def manager_api(service: ManagerService) -> Starlette:
    return http.application(ManagerRoutes(service))
