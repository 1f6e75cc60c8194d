"""The messages of docs/vectors between manager and routers, and Sight wherever else it stands.

Not here: a VM's life and moves (vector_messages.py), what must be dropped (vector_drops.py).
"""

from __future__ import annotations

from tools.vector_messages import (
    ETH0,
    LIFETIME,
    NVE_A,
    NVE_B,
    NVE_C,
    TICKET,
    VM,
    Json,
    Speaker,
    answer,
    ask,
    definition_options,
)
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    AttachId,
    Endpoint,
    Epoch,
    Measurements,
    Option,
    PhaseOption,
    PreviousNve,
    Reason,
    Route,
    ServingNve,
    Sight,
    VmId,
)
from vmmobility.wire.registry import Phase, Purpose, RouteState, Status
from vmmobility.wire.values import Nve, VmKey

NOT_YET, DIRECT, COVERED = Sight(False, False), Sight(True, False), Sight(False, True)
BOTH = Sight(True, True)


class Routing:
    """The manager's words with routers, one vector a message."""

    def __init__(self) -> None:
        self.speaker = Speaker()
        self.vectors: list[Json] = []
        self._sequence = 0x90

    def talk(self, name: str, asker: str, other: str, request: Message, reply: Message) -> None:
        self.vectors.append(self.speaker.vector(f"{name}: request", asker, other, request))
        self.vectors.append(self.speaker.vector(f"{name}: reply", other, asker, reply))

    def number(self) -> int:
        self._sequence += 1
        return self._sequence

    def order(
        self, name: str, router: str, epoch: int, state: RouteState,
        serving: Nve | None = None, previous: Nve | None = None, seen: Sight = NOT_YET,
    ) -> None:  # fmt: skip
        """A ROUTE that is obeyed."""
        head = VM, Epoch(epoch), Route(state)
        body: tuple[Option, ...] = (ETH0, ServingNve(serving)) if serving is not None else ()
        body += (PreviousNve(previous),) if previous is not None else ()
        request = ask(Purpose.ROUTE, self.number(), *head, *body)
        self.talk(name, "manager", router, request, answer(request, *head, seen))

    def refusal(self, name: str, request: Message, status: Status, *body: Option) -> None:
        self.talk(name, "manager", "tor-b", request, answer(request, *body, status=status))

    def sight(self, name: str, router: str, epoch: int, state: RouteState, seen: Sight) -> Message:
        request = ask(Purpose.SIGHT, self.number(), VM, Epoch(epoch), Route(state), seen)
        self.talk(name, router, "manager", request, answer(request, VM))
        return request


def routes() -> Json:
    """A move that the fabric follows, what routers refuse, and Sight elsewhere."""
    said, state = Routing(), RouteState
    # Section 13.8: from home, at nve-a, to nve-b
    said.order("1 the source's router holds", "tor-a", 3, state.KEEP, NVE_B, NVE_A)
    said.order("2 the border router holds", "edge", 3, state.KEEP, NVE_B, NVE_A)
    said.order("3 the destination's router announces", "tor-b", 4, state.ANNOUNCE, NVE_B,
               seen=DIRECT)  # fmt: skip
    said.sight("4 the source's router sees it", "tor-a", 3, state.KEEP, DIRECT)
    said.sight("5 the border router sees it", "edge", 3, state.KEEP, DIRECT)
    said.order("5a the border router lets go", "edge", 5, state.WATCH, NVE_B, seen=DIRECT)
    said.order("5b the source's router lets go", "tor-a", 6, state.WATCH, NVE_B, seen=DIRECT)
    # on to nve-c
    said.order("6 moved on: the source's router leads and announces no more", "tor-b", 8,
               state.KEEP, NVE_C, NVE_B, seen=NOT_YET)  # fmt: skip
    said.sight("7 and sees the fabric follow another's route", "tor-b", 8, state.KEEP, DIRECT)
    said.order("8 it lets go, and watches", "tor-b", 9, state.WATCH, NVE_C, seen=DIRECT)
    said.order("9 it is nobody's router any more", "tor-b", 11, state.NONE)
    # home again
    said.order("10 home again: the router there leads", "tor-a", 14, state.LEAD, NVE_A,
               seen=COVERED)  # fmt: skip
    said.sight("11 the covering prefix leads there, as nothing else does", "tor-a", 14, state.LEAD,
               BOTH)  # fmt: skip
    relay = ask(Purpose.SWITCH, said.number(), VM, Epoch(2), PhaseOption(Phase.PREPARED), TICKET)
    said.talk("before 1, the destination relays to the source", "manager", "nve-b", relay,
              answer(relay, VM, Epoch(0), PhaseOption(Phase.PREPARED)))  # fmt: skip
    _questions(said)
    _refusals(said)
    _elsewhere(said)
    return {
        "description": "ROUTE and SIGHT: a move that the fabric follows, on, and home again "
        "(Section 13.8); what a router refuses; Sight in other messages.",
        "vectors": said.vectors,
    }


def _questions(said: Routing) -> None:
    """What people ask a router."""
    rows = (
        b'{"rows":[{"address":"10.1.0.5","priority":78,"table":7701,"prefix":"10.1.0.5/32",'
        b'"metric":7,"protocol":77,"kind":"unicast","ours":true,"next_hops":'
        b'[{"interface":"eth1","gateway":"10.0.1.2"}],"leads":true}]}'
    )
    told = ask(Purpose.CHECK, said.number(), VM, ETH0)
    led = answer(told, VM, Epoch(14), Route(RouteState.LEAD), BOTH, Measurements(rows))
    said.talk("where does it lead", "manager", "tor-a", told, led)
    nobody = ask(Purpose.CHECK, said.number(), ETH0)
    said.talk("the same of an address of nobody", "manager", "edge", nobody,
              answer(nobody, Epoch(0), Route(RouteState.NONE),
                     Measurements(b'{"rows":[],"more":true}')))  # fmt: skip


def _refusals(said: Routing) -> None:
    """What routers, and the manager, refuse."""
    state = RouteState
    late = ask(Purpose.ROUTE, said.number(), VM, Epoch(7), Route(state.ANNOUNCE), ETH0,
               ServingNve(NVE_B))  # fmt: skip
    said.refusal("a past epoch", late, Status.STALE_EPOCH, VM, Epoch(11), Route(state.NONE))
    cut_off = ask(Purpose.ROUTE, said.number(), VM, Epoch(15), Route(state.LEAD), ETH0,
                  ServingNve(NVE_C))  # fmt: skip
    said.refusal(
        "a locator that nothing leads to", cut_off, Status.DATA_PLANE_FAILURE, VM, Epoch(15),
        Route(state.LEAD), NOT_YET, Reason("no route leads to 10.0.3.2 of nve-c"),
    )  # fmt: skip
    overtaken = ask(Purpose.ROUTE, said.number(), VM, Epoch(16), Route(state.WATCH), ETH0,
                    ServingNve(NVE_C))  # fmt: skip
    said.refusal("overtaken by the next", overtaken, Status.OUT_OF_SEQUENCE, VM, Epoch(16),
                 Route(state.WATCH), Reason("overtaken"))  # fmt: skip
    bare = ask(Purpose.ROUTE, said.number(), VM, Epoch(17), Route(state.KEEP), ETH0,
               ServingNve(NVE_C))  # fmt: skip
    said.refusal("nobody to keep it with", bare, Status.MALFORMED,
                 Reason("ROUTE to KEEP needs the previous NVE"))  # fmt: skip
    other = ask(Purpose.ROUTE, said.number(), VmId(VmKey(7, "vm-1")), Epoch(18), Route(state.NONE))
    said.refusal("another virtual network", other, Status.VNI_NOT_SUPPORTED)
    seen = ask(Purpose.SIGHT, said.number(), VM, Epoch(9), Route(state.WATCH), DIRECT)
    unknown = answer(seen, status=Status.UNKNOWN_BINDING)
    said.talk("a sight of what the router was told nothing of", "tor-b", "manager", seen, unknown)


def _elsewhere(said: Routing) -> None:
    """What an NVE says of its home, and hears of the fabric."""
    attach = ask(
        Purpose.ATTACH, said.number(), VM, ETH0, ServingNve(NVE_A), AttachId(1), COVERED,
        lifetime=LIFETIME,
    )  # fmt: skip
    said.talk("attach at home", "nve-a", "manager", attach,
              answer(attach, VM, Epoch(1), lifetime=LIFETIME))  # fmt: skip
    prepare = ask(
        Purpose.PREPARE, said.number(), VM, Epoch(12), TICKET, PhaseOption(Phase.PREPARED), ETH0,
        PreviousNve(NVE_B), *definition_options(b"{}"),
    )  # fmt: skip
    assert NVE_A.ipv4 is not None
    waits = answer(prepare, VM, Epoch(9), PhaseOption(Phase.PREPARED),
                   Endpoint(NVE_A.ipv4, 49152), COVERED)  # fmt: skip
    said.talk("prepared where it will be at home", "manager", "nve-a", prepare, waits)
    redirect = ask(Purpose.REDIRECT, said.number(), VM, ETH0, ServingNve(NVE_B), Epoch(2), DIRECT,
                   lifetime=LIFETIME)  # fmt: skip
    said.talk("redirect while the fabric is direct", "manager", "nve-a", redirect,
              answer(redirect, VM, Epoch(2), PhaseOption(Phase.REDIRECTING)))  # fmt: skip
    standing = ask(Purpose.REFRESH, said.number(), VM, Epoch(2), PhaseOption(Phase.REDIRECTING))
    said.talk("does it stand, while the fabric is direct", "nve-a", "manager", standing,
              answer(standing, VM, Epoch(2), ServingNve(NVE_B), DIRECT))  # fmt: skip
