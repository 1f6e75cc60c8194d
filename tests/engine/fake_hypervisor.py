"""A hypervisor in tests, as plain values: one node's guests, their moves, and other hands.

It outlives a daemon's crash and ends with a power cut, as QEMU does; it notes whose VM's state
changes (`touched`).  Not here: time and the network that joins the nodes (network.py), what must
always hold (safety.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from ipaddress import ip_address
from typing import Any, Protocol

from tests.engine.fake_checkpoints import FakeCheckpoints
from tests.engine.noted import Noted
from vmmobility.engine.outputs import HypervisorOrder, Order
from vmmobility.wire.move_terms import NO_TERMS
from vmmobility.wire.values import Nve, VmKey


class Life(Enum):
    """A guest's state at one hypervisor."""

    RUNNING = "running"
    WAITING = "waiting"  # an incoming guest without its memory
    PAUSED = "paused"  # superseded
    HANDED = "handed over"  # stopped in a switch-over; its memory is still whole
    DEPARTED = "departed"  # sent to another host by other hands


class Guest:
    """One guest process.  copy_to: the waiting guest at the other end of its outgoing copy.
    by_hand: brought or started by other hands; migrated: brought by them from another host;
    loading: all its memory is here, it runs soon; forced: its copy ends in post-copy;
    fetched_from: the guest whose memory it still fetches; fetched: it went on elsewhere so.
    held: it was not running when it was copied, or is not to run; arrived: so it came, and nobody
    has said yet that it is to be kept; secret: what its source has to know, if it is forced."""

    __slots__ = (
        "_life", "arrived", "at", "by_hand", "copy_to", "fetched", "fetched_from", "forced", "held",
        "loading", "migrated", "port", "secret", "value", "vm",
    )  # fmt: skip

    def __init__(
        self, vm: VmKey, life: Life, at: Hypervisor, port: int = 0, by_hand: bool = False
    ) -> None:
        self.vm, self.at, self.port, self.by_hand = vm, at, port, by_hand
        self.copy_to: Guest | None = None
        self.loading = self.migrated = self.forced = self.fetched = False
        self.fetched_from: Guest | None = None
        self.value = 0
        self.held = self.arrived = False
        self.secret = ""
        self._life = life

    @property
    def life(self) -> Life:
        return self._life

    @life.setter
    def life(self, life: Life) -> None:
        self._life = life
        self.at.touched.add(self.vm)


class Schedule(Protocol):
    """Calls a function after `delay` seconds of virtual time."""

    def __call__(self, delay: float, action: Callable[[], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a hypervisor takes, in seconds."""

    order_s: float = 0.002
    copy_s: float = 0.5
    moment_s: float = 0.02
    stop_s: float = 0.01
    load_s: float = 0.01
    fetch_s: float = 3.0


class Hypervisor(FakeCheckpoints):
    """One node's guests.  Speaks QEMU's order: CONVERGED; ABOUT_TO_STOP; STOPPED, COMPLETED at
    the source, RESUMED at the destination.

    watched:    guests of other hands that are expected: what comes of them is reported
    fail_next:  order -> reasons for which its next calls fail
    lose_next:  order -> a reason: its next call is carried out, but nobody hears so
    break_next: stages ("copy", "moment", "switch", "load") at which the next move breaks
    """

    def __init__(
        self,
        own: Nve,
        schedule: Schedule,
        done: Callable[[VmKey, Order, dict[str, Any], str], None],
        report: Callable[[VmKey, str, dict[str, Any]], None],
        find: Callable[[str, int], Guest | None],
        pace: Pace,
        touched: set[VmKey] | None = None,
    ) -> None:
        super().__init__()
        self.own = own
        self.touched: set[VmKey] = set() if touched is None else touched
        self.guests: dict[VmKey, Guest] = Noted(self.touched)
        self.watched: set[VmKey] = set()
        self.fail_next: dict[Order, list[str]] = {}
        self.lose_next: dict[Order, str] = {}
        self.break_next: set[str] = set()
        self.about_to_end: Callable[[Guest], None] = lambda guest: None
        self.heard: Callable[[HypervisorOrder], None] = lambda order: None
        self._later, self._done, self._report, self._find = schedule, done, report, find
        self._pace = pace
        self.retired: list[VmKey] = []
        self._port = 49000
        self._powered = self._daemon = 0  # how often the machine has lost its power

    def running(self) -> dict[VmKey, bool]:
        """What adopt() tells: VM -> does it run; absent guests are absent."""
        return {
            vm: guest.life is Life.RUNNING
            for vm, guest in self.guests.items()
            if vm in self.watched or not guest.by_hand
        }

    def lose_all(self) -> None:
        """The machine lost its power: no order under way ends."""
        self._powered += 1
        self.guests.clear()
        self.watched.clear()
        self.armed.clear()
        self.close_doors()

    def sweep(self, known: set[VmKey]) -> None:
        """A daemon that starts ends the guests of ours that its engine does not know."""
        for vm in [vm for vm, g in self.guests.items() if vm not in known and not g.by_hand]:
            del self.guests[vm]

    # ---- other hands ---------------------------------------------------------------------------

    def start_by_hand(self, vm: VmKey) -> None:
        """Somebody starts the guest here, and nobody of ours asked for it."""
        self._quit_departed(vm)
        assert vm not in self.guests, f"{vm} lives here already"
        self.guests[vm] = Guest(vm, Life.RUNNING, self, by_hand=True)
        self._arrived(vm)

    def migrate_by_hand(self, vm: VmKey, other: Hypervisor) -> None:
        """Somebody moves the running guest: it departs here at once, and soon runs there."""
        guest = self.guests[vm]
        assert guest.life is Life.RUNNING, f"{vm} does not run here"
        other._quit_departed(vm)
        assert vm not in other.guests, f"{vm} lives there already"
        if guest.copy_to is not None:
            self._break(guest, "cancelled")
        guest.life = Life.DEPARTED
        arriving = other.guests[vm] = Guest(vm, Life.HANDED, other, by_hand=True)
        self._later(self._pace.stop_s, lambda: self._departed(guest))
        self._later(self._pace.load_s, lambda: other._arrive_by_hand(arriving))

    def _quit_departed(self, vm: VmKey) -> None:
        """Nobody starts a guest beside the process of one that has left."""
        if vm in self.guests and self.guests[vm].life is Life.DEPARTED:
            self.kill(vm)

    def _departed(self, guest: Guest) -> None:
        if self.guests.get(guest.vm) is guest and guest.life is Life.DEPARTED:
            self._report(guest.vm, "departed", {})

    def _arrive_by_hand(self, guest: Guest) -> None:
        if self.guests.get(guest.vm) is guest and guest.life is Life.HANDED:
            guest.life, guest.migrated = Life.RUNNING, True
            self._arrived(guest.vm)

    def resume_by_hand(self, vm: VmKey) -> None:
        """Somebody lets a guest go on that has left, or was stopped."""
        self.guests[vm].life, self.guests[vm].migrated = Life.RUNNING, False
        self._arrived(vm)

    def _arrived(self, vm: VmKey) -> None:
        if vm in self.watched:
            self._report(vm, "arrived", {"migrated": self.guests[vm].migrated})

    def kill(self, vm: VmKey) -> None:
        """The guest's process ends of itself."""
        guest = self.guests.pop(vm, None)
        if guest is not None:
            self._report(vm, "gone", {})

    def power_off(self, vm: VmKey) -> None:
        """The guest shuts itself down."""
        if self.guests.pop(vm, None) is not None:
            self._report(vm, "gone", {"clean": True})

    def order(self, order: HypervisorOrder) -> None:
        """Take an order; it is carried out and answered a little later."""
        self.heard(order)
        powered, daemon = self._powered, self._daemon
        if order.order is Order.ARM:  # it waits for no other order
            self.arm(order.vm, order.arguments["until"])
            return
        self._later(self._pace.order_s, lambda: self._carry_out(order, powered, daemon))

    def new_daemon(self) -> None:
        """What the last one was about to start is not started any more: it was its child."""
        self._daemon += 1
        for guest in self.guests.values():
            if guest.arrived:
                self._later(self._pace.order_s, partial(self._tell_arrived, guest))

    def _tell_arrived(self, guest: Guest) -> None:
        if self.guests.get(guest.vm) is guest and guest.arrived:
            self._report(guest.vm, "resumed", {"held": True})

    def _carry_out(self, order: HypervisorOrder, powered: int, daemon: int) -> None:
        starts = order.order in (
            Order.START, Order.PREPARE_INCOMING, Order.RECEIVE, Order.CHECKPOINT, Order.ACTIVATE
        )  # fmt: skip
        if powered != self._powered or (starts and daemon != self._daemon):
            return
        failures = self.fail_next.get(order.order)
        if failures:
            self._done(order.vm, order.order, {}, failures.pop(0))
            return
        handler = getattr(self, "_" + order.order.value.replace("-", "_"))
        result, error = handler(order.vm, order.arguments) or ({}, "")
        error = error or self.lose_next.pop(order.order, "")
        self._done(order.vm, order.order, result, error)

    # ---- orders: each returns (result, error) or None ------------------------------------------

    def _retire(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        if vm not in self.guests:
            self.retired.append(vm)

    def _start(self, vm: VmKey, arguments: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        guest = self.guests.get(vm)
        held = arguments.get("held", False)
        if guest is not None and guest.life is not (Life.PAUSED if held else Life.RUNNING):
            return {}, f"it lives here already: {guest.life.value}"
        if guest is None and held:
            guest = self.guests[vm] = Guest(vm, Life.PAUSED, self)
        if guest is None:
            self.guests[vm] = Guest(vm, Life.RUNNING, self)
            self._later(0.0, lambda: self._report(vm, "started", {}))
        return None

    def _stop(self, vm: VmKey, arguments: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        """With a time to shut itself down, the guest does so."""
        guest = self.guests.get(vm)
        if guest is not None and self._is_fetched(guest):
            return {}, "its destination still fetches its memory from here"
        if arguments.get("grace_s") and guest is not None:
            self.kill(vm)
        self.guests.pop(vm, None)
        return None

    def _is_fetched(self, guest: Guest) -> bool:
        """Whether another guest lives on what only this one has."""
        heir = guest.copy_to
        return (
            guest.fetched
            and heir is not None
            and heir.at.guests.get(guest.vm) is heir
            and heir.fetched_from is guest
        )

    def _pause(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        if vm in self.guests and self.guests[vm].life is Life.RUNNING:
            self.guests[vm].life = Life.PAUSED

    def _resume(self, vm: VmKey, arguments: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        guest = self.guests.get(vm)
        if guest is None or guest.life is Life.WAITING:
            return {}, "no such guest lives here"
        if guest.fetched:
            return {}, "it went on elsewhere in post-copy"
        guest.life, guest.copy_to = Life.RUNNING, None
        guest.held = guest.arrived = False
        return None

    def _keep(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        guest = self.guests.get(vm)
        if guest is not None and guest.life is not Life.WAITING:
            guest.life, guest.copy_to, guest.arrived = Life.PAUSED, None, False

    def _prepare_incoming(
        self, vm: VmKey, arguments: dict[str, Any]
    ) -> tuple[dict[str, Any], str] | None:
        guest = self.guests.get(vm)
        if guest is not None and guest.life is not Life.WAITING:
            return {}, "a guest of that name lives here"
        if guest is None:
            self._port += 1
            guest = self.guests[vm] = Guest(vm, Life.WAITING, self, self._port)
        guest.secret = arguments.get("secret", "")
        address = ip_address(arguments["address"])
        assert address in self.own.locators
        return {"address": str(address), "port": guest.port}, ""

    def _copy_out(self, vm: VmKey, arguments: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        guest = self.guests.get(vm)
        if guest is None or guest.life not in (Life.RUNNING, Life.PAUSED):
            return {}, "no guest is here that could be copied"
        waiting = self._find(arguments["address"], arguments["port"])
        if waiting is None:
            return {}, "connection refused"
        if guest.fetched:
            return {}, "it went on elsewhere in post-copy"
        guest.copy_to = waiting
        guest.forced = arguments.get("terms", NO_TERMS).forces
        if guest.forced:
            assert waiting.secret, "anybody could say that the rest of it is lost"
            assert waiting.secret == arguments["secret"]
        guest.held = guest.life is Life.PAUSED
        self._later(self._pace.copy_s, lambda: self._stage(guest, waiting, "copy"))
        return None

    def _switch_over(
        self, vm: VmKey, arguments: dict[str, Any]
    ) -> tuple[dict[str, Any], str] | None:
        guest = self.guests.get(vm)
        if guest is None or guest.copy_to is None:
            return {}, "no copy is under way"
        waiting = guest.copy_to
        self._later(self._pace.moment_s, lambda: self._stage(guest, waiting, "moment"))
        return None

    def _proceed(self, vm: VmKey, arguments: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        guest = self.guests.get(vm)
        if guest is None or guest.copy_to is None:
            return {}, "no copy is under way"
        waiting = guest.copy_to
        if not self._alive(guest, waiting):
            return None
        guest.life = Life.HANDED
        self._report(vm, "stopped", {})
        self._later(self._pace.stop_s, lambda: self._stage(guest, waiting, "switch"))
        return None

    def _cancel(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        guest = self.guests.get(vm)
        if guest is None:
            return
        if guest.life is Life.WAITING or guest.arrived:
            del self.guests[vm]
        elif guest.copy_to is not None and not guest.fetched:
            self._break(guest, "cancelled")

    def _announce(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        return

    def _query(self, vm: VmKey, arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
        guest = self.guests.get(vm)
        unseen = guest is not None and guest.by_hand and vm not in self.watched
        return {"life": "none" if unseen else self.life(vm)}, ""

    def life(self, vm: VmKey) -> str:
        """The VM's life here, as QUERY tells it: the name of a GuestLife in small letters."""
        guest = self.guests.get(vm)
        if guest is None:
            return "none"
        if guest.life is Life.RUNNING:
            return "arrived" if guest.migrated else "running"
        sent = guest.copy_to is None or guest.fetched
        handed = guest.life is Life.HANDED and sent and not guest.by_hand
        return "departed" if handed or guest.life is Life.DEPARTED else "held"

    def _watch(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        self.watched.add(vm)
        guest = self.guests.get(vm)
        if guest is not None and guest.by_hand and guest.life is Life.RUNNING:
            self._later(0.0, lambda: self._arrived(vm))

    def _unwatch(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        self.watched.discard(vm)

    def _run(self, vm: VmKey) -> Guest:
        guest = self.guests[vm] = Guest(vm, Life.RUNNING, self)
        return guest

    def _is_running(self, vm: VmKey) -> bool:
        return vm in self.guests and self.guests[vm].life is Life.RUNNING

    def _leave(self, vm: VmKey) -> None:
        self.guests[vm].life = Life.HANDED

    # ---- a copy's stages -----------------------------------------------------------------------

    def _alive(self, guest: Guest, waiting: Guest) -> bool:
        """Whether this copy still goes on; if the other end died, it breaks here."""
        if self.guests.get(guest.vm) is not guest or guest.copy_to is not waiting:
            return False
        if waiting.at.guests.get(guest.vm) is not waiting or waiting.life is not Life.WAITING:
            self._break(guest, "connection reset")
            return False
        return True

    def _stage(self, guest: Guest, waiting: Guest, stage: str) -> None:
        if not self._alive(guest, waiting):
            return
        if stage in self.break_next:
            self.break_next.remove(stage)
            self._break(guest, f"broken at {stage}")
        elif stage == "copy":
            self._report(guest.vm, "converged", {"remaining_bytes": 4096})
        elif stage == "moment":
            self._report(guest.vm, "about-to-stop", {})
        elif guest.forced:
            guest.fetched, waiting.fetched_from = True, guest
            waiting.at.load(waiting)
            self._later(self._pace.fetch_s, lambda: self._fetched(guest, waiting))
        else:
            guest.copy_to = None
            self._report(guest.vm, "completed", {"downtime_ms": 10})
            waiting.held = guest.held
            waiting.at.load(waiting)

    def _fetched(self, guest: Guest, heir: Guest) -> None:
        """Post-copy is over: all is there, or one of the two has ended, and the other with it."""
        alive = self.guests.get(guest.vm) is guest
        if heir.at.guests.get(guest.vm) is not heir:
            if alive:
                self.about_to_end(guest)
                guest.copy_to = None
                self._report(guest.vm, "failed", {"reason": "its heir is lost", "running": False})
        elif alive:
            guest.copy_to = heir.fetched_from = None
            self._report(guest.vm, "completed", {"downtime_ms": 10})
        else:
            heir.at.about_to_end(heir)
            heir.at.kill(guest.vm)

    def load(self, guest: Guest) -> None:
        """All memory has come: the waiting guest runs a moment later."""
        guest.loading = True
        self._later(self._pace.load_s, lambda: self._loaded(guest))

    def _loaded(self, guest: Guest) -> None:
        if self.guests.get(guest.vm) is not guest:
            return
        if "load" in self.break_next:
            self.break_next.remove("load")
            self.about_to_end(guest)
            del self.guests[guest.vm]
            self._report(guest.vm, "failed", {"reason": "broken at load", "running": False})
            return
        guest.life, guest.loading = Life.PAUSED if guest.held else Life.RUNNING, False
        guest.arrived = guest.held
        self._report(guest.vm, "resumed", {"held": True} if guest.held else {})

    def _break(self, guest: Guest, reason: str) -> None:
        """The copy is over and the guest runs on here; the waiting one ends with it."""
        waiting, guest.copy_to = guest.copy_to, None
        guest.life = Life.PAUSED if guest.held else Life.RUNNING
        running = not guest.held
        self._report(guest.vm, "failed", {"reason": reason, "running": running})
        if waiting is not None:
            waiting.at.lost_source(waiting)

    def lost_source(self, guest: Guest) -> None:
        """The incoming copy broke: the waiting guest ends."""
        if self.guests.get(guest.vm) is guest and guest.life is Life.WAITING:
            del self.guests[guest.vm]
            self._report(guest.vm, "failed", {"reason": "the incoming copy broke"})
