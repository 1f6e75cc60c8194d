"""The manager asks nodes about a VM, or an address, on behalf of people (`vmmob trace`).

NVEs and routers are asked by CHECK; what they answer is handed over as it is, and changes nothing
here.  Not here: whom to ask and what the answers mean (daemon/trace.py), the comparison that mends
(manager_checks.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from vmmobility.engine.outputs import CommandDone
from vmmobility.wire.options import (
    Epoch,
    Guest,
    InterfaceGroup,
    Measurements,
    Option,
    PhaseOption,
    Reason,
    Route,
    ServingNve,
    Sight,
    VmId,
)
from vmmobility.wire.registry import Purpose, Role, Status
from vmmobility.wire.values import Interface

if TYPE_CHECKING:
    from vmmobility.engine.channel import Channel, Peer
    from vmmobility.engine.manager_checks import Listener
    from vmmobility.engine.outputs import Outbox
    from vmmobility.wire.message import Message
    from vmmobility.wire.registry import GuestLife
    from vmmobility.wire.values import Address, VmKey

ANY_MAC = bytes.fromhex("020000000000")  # of an address that no VM is known to have
_ROUTERS = (Role.DEFAULT_ROUTER, Role.BORDER_ROUTER)


@dataclass(slots=True)
class Asking:
    """Questions of one command.  sequences: of the requests to routers, to be withdrawn."""

    deadline: float
    waits_for: set[str]
    answers: dict[str, dict[str, Any] | None]
    sequences: dict[str, int] = field(default_factory=dict)


class ManagerTrace:
    """Questions for people; a part of ManagerEngine."""

    if TYPE_CHECKING:
        channel: Channel
        outbox: Outbox

        def _question(
            self,
            vm: VmKey,
            node: str,
            now: float,
            listener: Listener,
            claim: GuestLife | None = None,
        ) -> None: ...

    _askings: dict[int, Asking]

    def ask_nodes(
        self,
        command: int,
        vm: VmKey | None,
        address: Address,
        nodes: Sequence[str],
        seconds: float,
        now: float,
    ) -> None:
        """Ask each node how it leads the address.  Ends with CommandDone: answers, by node; None
        where none came in time.  An NVE has none to give where no VM is named."""
        asking = Asking(now + seconds, set(nodes), dict.fromkeys(nodes))
        self._askings[command] = asking
        for node in dict.fromkeys(nodes):
            peer = self.channel.peers.get(node)
            if peer is not None and peer.endpoints and peer.role in _ROUTERS:
                self._ask_router(command, asking, peer, vm, address, now)
            elif peer is not None and peer.role is Role.NVE and vm is not None:
                self._question(vm, node, now, partial(self._nve_told, command, node))
            else:
                asking.waits_for.discard(node)
        self._asked(command)

    def _ask_router(
        self,
        command: int,
        asking: Asking,
        peer: Peer,
        vm: VmKey | None,
        address: Address,
        now: float,
    ) -> None:
        options: list[Option] = [VmId(vm)] if vm is not None else []
        options.append(InterfaceGroup(Interface(ANY_MAC, (ip_network(address),))))
        told: Callable[[Message, float], None] = partial(self._router_told, command, peer.node_id)
        asking.sequences[peer.node_id] = self.channel.request(
            peer, Purpose.CHECK, options, now, told
        )

    def _router_told(self, command: int, node: str, reply: Message, now: float) -> None:
        self._told(command, node, router_answer(reply))

    def _nve_told(self, command: int, node: str, reply: Message | None, now: float) -> None:
        self._told(command, node, None if reply is None else nve_answer(reply))

    def _told(self, command: int, node: str, answer: dict[str, Any] | None) -> None:
        asking = self._askings.get(command)
        if asking is not None and node in asking.waits_for:
            asking.answers[node] = answer
            asking.waits_for.discard(node)
            asking.sequences.pop(node, None)
            self._asked(command)

    def _asked(self, command: int) -> None:
        asking = self._askings.get(command)
        if asking is not None and not asking.waits_for:
            del self._askings[command]
            self.outbox.emit(CommandDone(command, {"answers": asking.answers}))

    def _asking_timer(self, now: float) -> None:
        """Whoever has not answered by now is silent."""
        for command, asking in list(self._askings.items()):
            if asking.deadline <= now:
                for sequence in asking.sequences.values():
                    self.channel.withdraw(sequence)
                asking.waits_for.clear()
                self._asked(command)


def router_answer(reply: Message) -> dict[str, Any]:
    """A router's answer to CHECK, as people read it.  rows: as RouterPlane.explain has them, but
    for what is empty."""
    route, sight, epoch = reply.find(Route), reply.find(Sight), reply.find(Epoch)
    shown = for_people(reply)
    rows = shown.get("rows")
    return {
        **_common(reply),
        "epoch": epoch.epoch if epoch else 0,
        "route": route.state.name.lower() if route else "none",
        "direct": sight.direct if sight else None,
        "covered": sight.covered if sight else None,
        "rows": [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else [],
        "more": shown.get("more") is True,
    }


def nve_answer(reply: Message) -> dict[str, Any]:
    """An NVE's answer to CHECK, as people read it.  shown: what its kernel does, as it says."""
    phase, guest, serving = reply.find(PhaseOption), reply.find(Guest), reply.find(ServingNve)
    return {
        **_common(reply),
        "epoch": reply.epoch,
        "phase": phase.phase.name.lower() if phase else "none",
        "guest": guest.life.name.lower() if guest else "none",
        "target": serving.nve.nve_id if serving else None,
        "shown": for_people(reply),
    }


def _common(reply: Message) -> dict[str, Any]:
    words = reply.find(Reason)
    refused = "" if reply.status is Status.ACCEPTED else reply.status.name.lower().replace("_", "-")
    return {"refused": refused, "reason": words.text if words else ""}


def for_people(reply: Message) -> dict[str, Any]:
    """The Measurements, where they are an object that can be printed; else nothing."""
    measurements = reply.find(Measurements)
    try:
        found = json.loads(measurements.data) if measurements else {}
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        return {}
    # What JSON writes with a backslash is a control character, or a quote.
    clean = text.isprintable() and "\\" not in text
    return found if clean and isinstance(found, dict) else {}
