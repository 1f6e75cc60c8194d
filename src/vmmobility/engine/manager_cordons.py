"""Cordoned NVEs: no VM begins there and none is moved there; those that are there go on.

A cordon is an operator's word, by itself or for a drain; durable, until it is lifted.
Not here: drains (manager_drains.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmmobility.engine.manager_drain import DrainRefused
from vmmobility.engine.outputs import Event
from vmmobility.wire.options import Guest
from vmmobility.wire.registry import GuestLife, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import Binding
    from vmmobility.engine.channel import Channel, Received
    from vmmobility.engine.manager_drain import Drain
    from vmmobility.engine.outputs import Outbox


@dataclass(frozen=True, slots=True)
class Cordon:
    """drain: the ID of the drain that it was made for, "" for one by itself."""

    nve_id: str
    since_ns: int
    drain: str = ""


class ManagerCordons:
    """Cordons, and the manager's idea of the time of day; a part of ManagerEngine."""

    if TYPE_CHECKING:
        channel: Channel
        outbox: Outbox
        _drain_of: Callable[[str], Drain | None]

    cordons: dict[str, Cordon]
    _told_time: tuple[int, float]

    def tell_time(self, wall_ns: int, now: float) -> None:
        """CLOCK_REALTIME, for what people are shown of what happens later."""
        self._told_time = (wall_ns, now)

    def _wall_ns(self, now: float) -> int:
        wall_ns, then = self._told_time
        return wall_ns + int((now - then) * 1e9)

    def cordon(self, nve_id: str, now: float) -> Cordon:
        """Keep VMs from an NVE; one that is cordoned stays so.  Raises DrainRefused."""
        self._check_nve(nve_id)
        return self._cordon(nve_id, "", now)

    def uncordon(self, nve_id: str, now: float) -> None:
        """Let VMs come again.  Raises DrainRefused while a drain empties it."""
        self._check_nve(nve_id)
        drain = self._drain_of(nve_id)
        if drain is not None:
            raise DrainRefused(
                "conflict",
                f"{nve_id} is being drained",
                f"give the drain up first: `vmmob drain abort {drain.drain_id}`",
            )
        self._uncordon(nve_id)

    def _check_nve(self, nve_id: str) -> None:
        peer = self.channel.peers.get(nve_id)
        if peer is None or peer.role is not Role.NVE:
            raise DrainRefused("unknown-nve", f"no NVE {nve_id} is known", "see `vmmob show nves`")

    def _cordon(
        self, nve_id: str, drain: str, now: float, given_up: Collection[str] = ()
    ) -> Cordon:
        """given_up: drains whose cordon passes to this one."""
        held = self.cordons.get(nve_id)
        if held is not None and held.drain not in given_up:
            return held
        since_ns = held.since_ns if held is not None else self._wall_ns(now)
        cordon = self.cordons[nve_id] = Cordon(nve_id, since_ns, drain)
        self.outbox.record(f"cordon/{nve_id}", {"since_ns": since_ns, "drain": drain})
        if held is None:
            self.outbox.emit(Event("nve.cordoned", {"nve": nve_id}))
        return cordon

    def _uncordon(self, nve_id: str) -> None:
        if self.cordons.pop(nve_id, None) is not None:
            self.outbox.record(f"cordon/{nve_id}", None)
            self.outbox.emit(Event("nve.uncordoned", {"nve": nve_id}))

    def _is_cordoned(self, nve_id: str) -> bool:
        """Whether no VM may begin there and none be moved there."""
        return nve_id in self.cordons

    def _kept_off(self, received: Received, binding: Binding | None) -> str:
        """Why a VM may not begin at the NVE that asks for it, or the empty string.

        What is there already is never kept off: a guest that lives there, one that has served
        there, and a binding of that NVE's.
        """
        node, message = received.peer.node_id, received.message
        if not self._is_cordoned(node):
            return ""
        if binding is not None and binding.nve.nve_id == node:
            return ""
        guest = message.find(Guest)
        if guest is not None and guest.life is not GuestLife.NONE:
            return ""
        return f"{node} is cordoned: `vmmob nve uncordon {node}` lets VMs begin there again"

    def _load_cordons(self, state: Mapping[str, Any], now: float) -> None:
        self._told_time = (0, now)
        self.cordons = {}
        for key, value in state.items():
            if key.startswith("cordon/"):
                nve_id = key.removeprefix("cordon/")
                self.cordons[nve_id] = Cordon(nve_id, value["since_ns"], value["drain"])
