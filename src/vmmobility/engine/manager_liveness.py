"""Which NVEs live, by their heartbeats (Section 8.1): alive, silent, dead, or without heartbeats.

An NVE that stands apart says which of its servers answer: one that does not, for as long as three
heartbeats take, is dead, its NVE is not.
A dead NVE's, or server's, VMs are marked and people are told; no route changes, nobody expires,
for the guests may run on behind a broken path (design, invariant 9: fail static).
That an NVE sends heartbeats is durable; when it was heard is not: a manager that starts anew, or
was stopped for a while, grants every NVE the whole time again.
Not here: an NVE's heartbeats (nve_heartbeats.py), who gets its room (manager_admission.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmmobility.engine.capacity import (
    UNKNOWN,
    HostCapacity,
    ServerRoom,
    from_option,
    from_server_option,
)
from vmmobility.engine.outputs import Event
from vmmobility.wire.options import Capacity, KnownBoot, ServerCapacity
from vmmobility.wire.registry import Role, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmmobility.engine.channel import Channel, Received
    from vmmobility.engine.outputs import Outbox

MISSED = 3  # so many heartbeats that did not come: the NVE is dead
LATE_S = 0.5  # a heartbeat may be so late: it was lost, and came the second time
STALLED_S = 1.0  # a timer that is so late: this node itself has stood still
NEWER = 1 << 31  # of two sequence numbers, modulo 2^32


@dataclass(slots=True)
class ServerSeen:
    """What an NVE's last heartbeat said of one of its servers.

    silent: since when it says that the agent does not answer (monotonic seconds); None: it does
    dead: so it has been for three heartbeats, and people were told
    """

    room: ServerRoom
    silent: float | None = None
    dead: bool = False

    @property
    def liveness(self) -> str:
        if self.dead:
            return "dead"
        return "alive" if self.silent is None else "silent"


@dataclass(slots=True)
class Pulse:
    """What is known of one NVE's heartbeats.

    boot: the highest under which one came, and interval_s: how often they come (both durable)
    heard: when the last one came, or when waiting for it began (monotonic seconds)
    sequence: of the last one, since this manager's start; None: none came yet
    dead: so many did not come, and people were told
    servers: those that it stands apart from, by name
    """

    boot: int
    interval_s: float
    heard: float
    sequence: int | None = None
    dead: bool = False
    capacity: HostCapacity = UNKNOWN
    servers: dict[str, ServerSeen] = field(default_factory=dict)

    def is_older_than(self, sequence: int) -> bool:
        return self.sequence is None or 0 < (sequence - self.sequence) % (1 << 32) < NEWER

    @property
    def dead_at(self) -> float:
        return self.heard + MISSED * self.interval_s + LATE_S

    @property
    def late_at(self) -> float:
        return self.heard + self.interval_s + LATE_S


class ManagerLiveness:
    """Heartbeats; a part of ManagerEngine."""

    if TYPE_CHECKING:
        channel: Channel
        outbox: Outbox
        _follow_lives: Callable[[float], None]

    pulses: dict[str, Pulse]
    _liveness_at: float | None  # when the next NVE may be dead

    def _load_liveness(self, state: Mapping[str, Any], now: float) -> None:
        self.pulses = {}
        for name, peer in self.channel.peers.items():
            told = state.get(f"heartbeat/{name}")
            if peer.role is Role.NVE and told is not None:
                self.pulses[name] = Pulse(told["boot"], told["interval_s"], now)
        self._await_next()

    def _await_next(self) -> None:
        due = (p.dead_at for p in self.pulses.values() if not p.dead)
        self._liveness_at = min(due, default=None)

    # ---- for the other parts -------------------------------------------------------------------

    def liveness_of(self, nve_id: str, now: float) -> str:
        """ "alive", "silent" (one is late), "dead" (three have not come), or "none": it has sent no
        heartbeats, as those do that run an older version."""
        pulse = self.pulses.get(nve_id)
        if pulse is None:
            return "none"
        if pulse.dead:
            return "dead"
        return "silent" if now > pulse.late_at else "alive"

    def _silent_since(self, nve_id: str) -> float | None:
        """When a dead NVE was last heard (monotonic seconds); None: it is not dead."""
        pulse = self.pulses.get(nve_id)
        return pulse.heard if pulse is not None and pulse.dead else None

    def _nve_fell_silent(self, nve_id: str, now: float) -> None:
        """An NVE is dead, by its heartbeats: each part that heeds it is called here."""
        self._follow_lives(now)

    def _nve_speaks_again(self, nve_id: str, now: float) -> None:
        """An NVE that was dead is heard again."""
        self._follow_lives(now)

    def _servers_changed(self, nve_id: str, now: float) -> None:
        """A server of an NVE that stands apart is dead, or answers again."""
        self._follow_lives(now)

    # ---- heartbeats ----------------------------------------------------------------------------

    def _heartbeat(self, received: Received, now: float) -> None:
        """Section 10.11 of the protocol.  What comes late, or is from before this manager's start,
        is answered and says nothing."""
        message, name = received.message, received.peer.node_id
        known, told = message.need(KnownBoot).boot, message.need(Capacity)
        if known == self.channel.boot_to(name):
            options = (o for o in message.options if isinstance(o, ServerCapacity))
            rooms = [from_server_option(option) for option in options]
            self._heard_beat(name, received.boot, message.sequence, told, rooms, now)
        self.channel.reply(received, Status.ACCEPTED)

    def _heard_beat(
        self,
        name: str,
        boot: int,
        sequence: int,
        told: Capacity,
        rooms: list[ServerRoom],
        now: float,
    ) -> None:
        pulse, interval_s = self.pulses.get(name), told.interval_ms / 1000
        if pulse is None:
            pulse = self.pulses[name] = Pulse(0, interval_s, now)
        elif boot < pulse.boot or (boot == pulse.boot and not pulse.is_older_than(sequence)):
            return
        if (boot, interval_s) != (pulse.boot, pulse.interval_s):
            if boot > pulse.boot > 0:
                self.outbox.emit(Event("nve.restarted", {"nve": name, "boot": boot}))
            value = {"boot": boot, "interval_s": interval_s}
            self.outbox.record(f"heartbeat/{name}", value)
        pulse.boot, pulse.interval_s, pulse.sequence = boot, interval_s, sequence
        silent_s = now - pulse.heard
        pulse.heard, pulse.capacity = now, from_option(told)
        if pulse.dead:
            pulse.dead = False
            detail = {"nve": name, "silent_s": round(silent_s, 3)}
            self.outbox.emit(Event("nve.back", detail))
            self._nve_speaks_again(name, now)
        due = self._liveness_at
        if due is None or pulse.dead_at < due:
            self._liveness_at = pulse.dead_at
        self._heard_servers(name, rooms, now)

    # ---- servers of an NVE that stands apart ---------------------------------------------------

    def servers_of(self, nve_id: str) -> Mapping[str, ServerSeen]:
        """Its servers as it told of them last; empty if it has its guests on its own host."""
        pulse = self.pulses.get(nve_id)
        return pulse.servers if pulse is not None else {}

    def server_liveness(self, nve_id: str, server: str) -> str:
        """ "alive", "silent" or "dead", by its NVE's word; "" where nothing is known of it."""
        seen = self.servers_of(nve_id).get(server)
        return seen.liveness if seen is not None else ""

    def _server_is_dead(self, nve_id: str, server: str) -> bool:
        return self.server_liveness(nve_id, server) == "dead"

    def _heard_servers(self, name: str, rooms: list[ServerRoom], now: float) -> None:
        pulse = self.pulses[name]
        before = pulse.servers
        pulse.servers = {room.name: before.get(room.name) or ServerSeen(room) for room in rooms}
        changed = False
        for room in rooms:
            seen = pulse.servers[room.name]
            seen.room = room
            if room.answers:
                changed |= seen.dead
                if seen.dead:
                    where = {"nve": name, "server": room.name}
                    self.outbox.emit(Event("server.back", where))
                seen.silent, seen.dead = None, False
            elif seen.silent is None:
                seen.silent = now
            elif not seen.dead and now - seen.silent >= MISSED * pulse.interval_s:
                seen.dead = changed = True
                told = {"nve": name, "server": room.name, "silent_s": round(now - seen.silent, 3)}
                self.outbox.emit(Event("server.silent", told))
        if changed:
            self._servers_changed(name, now)

    def _liveness_timer(self, now: float) -> None:
        due = self._liveness_at
        if due is None or now < due:
            return
        if now > due + STALLED_S:
            # What came meanwhile may wait unread, or was lost: nobody is judged by that time.
            for pulse in self.pulses.values():
                pulse.heard = pulse.heard if pulse.dead else now
        for name, pulse in self.pulses.items():
            if not pulse.dead and pulse.dead_at <= now:
                pulse.dead = True
                detail = {"nve": name, "silent_s": round(now - pulse.heard, 3)}
                self.outbox.emit(Event("nve.silent", detail))
                self._nve_fell_silent(name, now)
        self._await_next()
