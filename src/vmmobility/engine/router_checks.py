"""A router's answer to CHECK: what it was told of a VM, and what its kernel makes of an address.

For people (`vmmob trace`): it changes nothing and waits for nothing but a look at the kernel.
Not here: how the kernel is read (drivers/linux/router_explain.py), orders (router.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmmobility.engine.fabric_routes import Sight as Seen
from vmmobility.engine.outputs import Explain
from vmmobility.errors import DecodeError
from vmmobility.wire.options import BY_CLASS, Epoch, Measurements, Option, Route, Sight, VmId
from vmmobility.wire.registry import RouteState, Status

if TYPE_CHECKING:
    from vmmobility.engine.channel import Channel, Received
    from vmmobility.engine.outputs import Outbox
    from vmmobility.engine.router import RouteEntry
    from vmmobility.wire.values import VmKey

MOST_ADDRESSES = 8  # are explained in one answer; the manager asks about one
MOST_QUESTIONS = 64  # wait for the kernel at a time; the oldest goes first
MOST_HOPS = 4  # of a route are named; how many there are is told
_NOTHING: tuple[object, ...] = (None, "", [])


class RouterChecks:
    """CHECK; a part of RouterEngine."""

    if TYPE_CHECKING:
        channel: Channel
        outbox: Outbox
        entries: dict[VmKey, RouteEntry]

    _retry: dict[VmKey, float]
    _explaining: dict[int, Received]
    _questions: int

    def _check_requested(self, received: Received, now: float) -> None:
        """CHECK: of the VM, of an address, or of a VM's address."""
        message = received.message
        named = message.find(VmId)
        if named is not None and named.vm.vni != 0:
            self.channel.reply(received, Status.VNI_NOT_SUPPORTED)
            return
        entry = self.entries.get(named.vm) if named else None
        interfaces = message.interfaces or (entry.interfaces if entry else ())
        addresses = tuple(p.network_address for i in interfaces for p in i.prefixes)
        if named is None and not addresses:
            raise DecodeError("missing-option", "CHECK needs a VM-ID or an address")
        self._questions += 1
        self._explaining[self._questions] = received
        while len(self._explaining) > MOST_QUESTIONS:
            oldest = self._explaining.pop(next(iter(self._explaining)))
            self.channel.reply(oldest, Status.INSUFFICIENT_RESOURCES, reason="too many questions")
        known = entry is not None and entry.state is not RouteState.NONE
        watched = entry.routes() if entry is not None and known else None
        self.outbox.emit(Explain(self._questions, addresses[:MOST_ADDRESSES], watched))

    def explained(
        self,
        number: int,
        rows: Sequence[Mapping[str, Any]],
        sight: Seen | None,
        error: str,
        now: float,
    ) -> None:
        """The answer to Explain(number): rows for people; error: why there are none."""
        received = self._explaining.pop(number, None)
        if received is None:
            return
        named = received.message.find(VmId)
        entry = self.entries.get(named.vm) if named else None
        undone = entry is not None and entry.vm in self._retry and not received.message.interfaces
        error = error or ("its kernel has not done what it was told last" if undone else "")
        options: list[Option] = [VmId(named.vm)] if named else []
        options.append(Epoch(entry.epoch if entry else 0))
        options.append(Route(entry.state if entry else RouteState.NONE))
        if sight is not None:
            options.append(Sight(sight.direct, sight.covered))
        if not error:
            options.append(Measurements(rows_to_json(rows)))
        status = Status.DATA_PLANE_FAILURE if error else Status.ACCEPTED
        self.channel.reply(received, status, options, reason=error)


def rows_to_json(
    rows: Sequence[Mapping[str, Any]], most: int = BY_CLASS[Measurements].octets[1]
) -> bytes:
    """As many whole rows as there is room for; "more" where that is not all.

    Left out: rules whose table has no route for the address, and fields that say nothing.
    """
    wanted = [_short(row) for row in rows if row.get("kind") is not None]
    for count in range(len(wanted), -1, -1):
        found: dict[str, Any] = {"rows": wanted[:count]}
        if count < len(wanted):
            found["more"] = True
        data = json.dumps(found, separators=(",", ":")).encode()
        if len(data) <= most:
            return data
    raise AssertionError("no room for no row")


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in row.items() if v not in _NOTHING and v is not False}
    hops = [
        {k: v for k, v in hop.items() if v not in _NOTHING} for hop in kept.get("next_hops", [])
    ]
    if hops:
        kept["next_hops"] = hops[:MOST_HOPS]
    if len(hops) > MOST_HOPS:
        kept["hops"] = len(hops)
    return kept
