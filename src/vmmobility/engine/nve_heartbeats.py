"""An NVE's heartbeats: it lives, under this boot, and has so much room for VMs (Section 8.1).

Nothing here is durable, and nothing waits for an answer: a heartbeat is superseded by the next.
Not here: what the manager makes of them (manager_liveness.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from vmmobility.engine.capacity import (
    HostCapacity,
    ServerRoom,
    all_of,
    to_option,
    to_server_option,
)
from vmmobility.engine.nve_parts import NveParts
from vmmobility.engine.outputs import MeasureHost
from vmmobility.wire.message import Message
from vmmobility.wire.options import KnownBoot
from vmmobility.wire.registry import Purpose

MEASURE_S = 5.0  # the host is measured so often


class NveHeartbeats(NveParts):
    """Heartbeats; a part of NveEngine."""

    _capacity: HostCapacity
    _rooms: tuple[ServerRoom, ...]
    _heartbeat_at: float | None  # monotonic seconds; None: it has not begun, or sends none
    _measure_at: float
    _measured_once: bool

    def _no_heartbeats_yet(self) -> None:
        self._capacity, self._heartbeat_at, self._measure_at = HostCapacity(), None, 0.0
        self._measured_once = False
        self._rooms = tuple(ServerRoom(name, False) for name in self.settings.servers)

    def host_measured(
        self, capacity: HostCapacity, now: float, servers: Sequence[ServerRoom] = ()
    ) -> None:
        """The answer to MeasureHost; the next heartbeat tells it.  servers: those that this node
        stands apart from, which have the room then."""
        self._capacity, self._rooms = all_of(servers) if servers else capacity, tuple(servers)
        first, self._measured_once = not self._measured_once, True
        if first and self._heartbeat_at is not None:
            self._send_beat(now)

    def _begin_heartbeats(self, now: float) -> None:
        if self.settings.heartbeat_s > 0:
            # The first tells what was measured, lest the host seem to be unlimited; a file system
            # that hangs keeps it back for an interval at most.  Servers limit what they have by
            # not answering yet.
            wait_s = 0.0 if self.settings.servers else self.settings.heartbeat_s
            self._heartbeat_at, self._measure_at = now + wait_s, now + MEASURE_S
            self.outbox.emit(MeasureHost())

    def _beat(self, now: float) -> None:
        """Send what is due.  A heartbeat that was missed is not made up for."""
        due = self._heartbeat_at
        if due is None or now < due:
            return
        if now >= self._measure_at:
            self._measure_at = now + MEASURE_S
            self.outbox.emit(MeasureHost())
        interval_s = self.settings.heartbeat_s
        self._heartbeat_at = due + interval_s if now < due + interval_s else now + interval_s
        self._send_beat(now)

    def _send_beat(self, now: float) -> None:
        interval_s = self.settings.heartbeat_s
        # The manager's boot tells it that this is not of the time before its start.
        known = self.manager.origin.boot if self.manager.origin else self.manager.window.boot
        self.channel.request(
            self.manager,
            Purpose.HEARTBEAT,
            [
                KnownBoot(known),
                to_option(self._capacity, interval_s),
                *(to_server_option(server) for server in self._rooms),
            ],
            now,
            self._beat_heard,
            subject="heartbeat",
        )

    def _beat_heard(self, reply: Message, now: float) -> None:
        """The manager lives; nothing rests on it."""
