"""The world around an engine in tests: a kernel's data plane and a hypervisor, as plain values.

Both outlive a daemon's crash and end with a power cut, as kernels and QEMU do.  Not here: time and
the network that joins the nodes (network.py), what must always hold (safety.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address
from typing import Any, Protocol

from vmmobility.engine.dataplane import Forwarding, VmDataPlane
from vmmobility.engine.outputs import HypervisorOrder, Order
from vmmobility.wire.values import Nve, VmKey


@dataclass(slots=True)
class Counters:
    """A VM's packets at one node (drivers/dataplane.Traffic has the same names)."""

    delivered: int = 0
    redirected: int = 0


@dataclass
class Kernel:
    """What one node's data plane holds.  fail_next: reasons for which the next changes fail."""

    held: dict[VmKey, VmDataPlane] = field(default_factory=dict)
    counters: dict[VmKey, Counters] = field(default_factory=dict)
    fail_next: list[str] = field(default_factory=list)

    def apply(self, state: VmDataPlane) -> list[str]:
        """Hold this state; the words why not, if it fails (then the old one stays)."""
        if self.fail_next:
            return [self.fail_next.pop(0)]
        if not state.plugged and state.forwarding is Forwarding.NONE:
            self.held.pop(state.vm, None)
            self.counters.pop(state.vm, None)
        else:
            self.held[state.vm] = state
            self.counters.setdefault(state.vm, Counters())
        return []


class Life(Enum):
    """A guest's state at one hypervisor."""

    RUNNING = "running"
    WAITING = "waiting"  # an incoming guest without its memory
    PAUSED = "paused"  # superseded
    HANDED = "handed over"  # stopped in a switch-over; its memory is still whole


@dataclass(slots=True)
class Guest:
    """One guest process.  copy_to: the waiting guest at the other end of its outgoing copy."""

    vm: VmKey
    life: Life
    port: int = 0
    copy_to: Guest | None = None
    at: Hypervisor | None = None


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


class Hypervisor:
    """One node's guests.  Speaks QEMU's order: CONVERGED; ABOUT_TO_STOP; STOPPED, COMPLETED at
    the source, RESUMED at the destination.

    fail_next:  order -> reasons for which its next calls fail
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
    ) -> None:
        self.own = own
        self.guests: dict[VmKey, Guest] = {}
        self.fail_next: dict[Order, list[str]] = {}
        self.break_next: set[str] = set()
        self._later, self._done, self._report, self._find = schedule, done, report, find
        self._pace = pace
        self._port = 49000

    def running(self) -> dict[VmKey, bool]:
        """What adopt() tells: VM -> does it run; absent guests are absent."""
        return {vm: g.life is Life.RUNNING for vm, g in self.guests.items()}

    def kill(self, vm: VmKey) -> None:
        """The guest's process ends of itself."""
        guest = self.guests.pop(vm, None)
        if guest is not None:
            self._report(vm, "gone", {})

    def order(self, order: HypervisorOrder) -> None:
        """Take an order; it is carried out and answered a little later."""
        self._later(self._pace.order_s, lambda: self._carry_out(order))

    def _carry_out(self, order: HypervisorOrder) -> None:
        failures = self.fail_next.get(order.order)
        if failures:
            self._done(order.vm, order.order, {}, failures.pop(0))
            return
        handler = getattr(self, "_" + order.order.value.replace("-", "_"))
        result, error = handler(order.vm, order.arguments) or ({}, "")
        self._done(order.vm, order.order, result, error)

    # ---- orders: each returns (result, error) or None ------------------------------------------

    def _start(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        if vm not in self.guests:
            self.guests[vm] = Guest(vm, Life.RUNNING, at=self)
            self._later(0.0, lambda: self._report(vm, "started", {}))

    def _stop(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        self.guests.pop(vm, None)

    def _pause(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        if vm in self.guests and self.guests[vm].life is Life.RUNNING:
            self.guests[vm].life = Life.PAUSED

    def _resume(self, vm: VmKey, arguments: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        guest = self.guests.get(vm)
        if guest is None or guest.life is Life.WAITING:
            return {}, "no such guest lives here"
        guest.life, guest.copy_to = Life.RUNNING, None
        return None

    def _prepare_incoming(
        self, vm: VmKey, arguments: dict[str, Any]
    ) -> tuple[dict[str, Any], str] | None:
        guest = self.guests.get(vm)
        if guest is not None and guest.life is not Life.WAITING:
            return {}, "a guest of that name lives here"
        if guest is None:
            self._port += 1
            guest = self.guests[vm] = Guest(vm, Life.WAITING, self._port, at=self)
        address = ip_address(arguments["address"])
        assert address in self.own.locators
        return {"address": str(address), "port": guest.port}, ""

    def _copy_out(self, vm: VmKey, arguments: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        guest = self.guests.get(vm)
        if guest is None or guest.life is not Life.RUNNING:
            return {}, "no guest runs here"
        waiting = self._find(arguments["address"], arguments["port"])
        if waiting is None:
            return {}, "connection refused"
        guest.copy_to = waiting
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
        if guest.life is Life.WAITING:
            del self.guests[vm]
        elif guest.copy_to is not None:
            self._break(guest, "cancelled")

    def _announce(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        return

    # ---- a copy's stages -----------------------------------------------------------------------

    def _alive(self, guest: Guest, waiting: Guest) -> bool:
        """Whether this copy still goes on; if the other end died, it breaks here."""
        if self.guests.get(guest.vm) is not guest or guest.copy_to is not waiting:
            return False
        assert waiting.at is not None
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
        else:
            guest.copy_to = None
            self._report(guest.vm, "completed", {"downtime_ms": 10})
            assert waiting.at is not None
            waiting.at.load(waiting)

    def load(self, guest: Guest) -> None:
        """All memory has come: the waiting guest runs a moment later."""
        self._later(self._pace.load_s, lambda: self._loaded(guest))

    def _loaded(self, guest: Guest) -> None:
        if self.guests.get(guest.vm) is not guest:
            return
        if "load" in self.break_next:
            self.break_next.remove("load")
            del self.guests[guest.vm]
            self._report(guest.vm, "failed", {"reason": "broken at load", "running": False})
            return
        guest.life = Life.RUNNING
        self._report(guest.vm, "resumed", {})

    def _break(self, guest: Guest, reason: str) -> None:
        """The copy is over and the guest runs on here; the waiting one ends with it."""
        waiting, guest.copy_to = guest.copy_to, None
        guest.life = Life.RUNNING
        self._report(guest.vm, "failed", {"reason": reason, "running": True})
        if waiting is not None and waiting.at is not None:
            waiting.at.lost_source(waiting)

    def lost_source(self, guest: Guest) -> None:
        """The incoming copy broke: the waiting guest ends."""
        if self.guests.get(guest.vm) is guest and guest.life is Life.WAITING:
            del self.guests[guest.vm]
            self._report(guest.vm, "failed", {"reason": "the incoming copy broke"})
