"""A kernel's data plane in tests, as plain values: what it holds, and what was asked of it.

It outlives a daemon's crash and ends with a power cut.  Not here: time and the network that joins
the nodes (network.py), what must always hold (safety.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.engine.noted import Noted
from vmmobility.engine.dataplane import Forwarding, VmDataPlane
from vmmobility.wire.values import VmKey


@dataclass(slots=True)
class Counters:
    """A VM's packets at one node (drivers/dataplane.Traffic has the same names)."""

    delivered: int = 0
    consumed: int = 0
    redirected: int = 0
    dropped: int = 0
    outside: int = 0
    too_big: int = 0


@dataclass
class Kernel:
    """What one node's data plane holds.  fail_next: reasons for which the next changes fail.

    wanted: what was last asked for, with which audit() compares what is held.
    lost:   what it held of these VMs went with the power, and it holds no route of them since.
    delay_s: what a change takes.
    """

    touched: set[VmKey] = field(default_factory=set)
    held: dict[VmKey, VmDataPlane] = field(init=False)
    lost: set[VmKey] = field(default_factory=set)
    wanted: dict[VmKey, VmDataPlane] = field(default_factory=dict)
    counters: dict[VmKey, Counters] = field(default_factory=dict)
    fail_next: list[str] = field(default_factory=list)
    delay_s: float = 0.001

    def __post_init__(self) -> None:
        self.held = Noted(self.touched)

    def apply(self, state: VmDataPlane) -> list[str]:
        """Hold this state; the words why not, if it fails (then the old one stays)."""
        self.wanted[state.vm] = state
        if is_nothing(state):
            del self.wanted[state.vm]
        if self.fail_next:
            return [self.fail_next.pop(0)]
        self.hold(state.vm, state)
        return []

    def hold(self, vm: VmKey, state: VmDataPlane | None) -> None:
        """Hold this state (None: nothing), whatever was asked for: drift, if it differs."""
        if state is None or is_nothing(state):
            self.held.pop(vm, None)
            self.counters.pop(vm, None)
        else:
            self.held[vm] = state
            if state.forwarding is not Forwarding.NONE:
                self.lost.discard(vm)
            self.counters.setdefault(vm, Counters())

    def audit(self, vm: VmKey) -> list[str]:
        """What is held otherwise than asked for, in words; repaired, unless a change fails."""
        found, wanted = self.held.get(vm), self.wanted.get(vm)
        if found == wanted:
            return []
        if not self.fail_next:
            self.hold(vm, wanted)
        else:
            self.fail_next.pop(0)
        return [drift_of(found, wanted)]

    def resync(self, wanted: dict[VmKey, VmDataPlane]) -> None:
        """A daemon's start: hold all of this and nothing else."""
        self.wanted = {vm: state for vm, state in wanted.items() if not is_nothing(state)}
        for vm in [*self.held, *self.wanted]:
            self.hold(vm, self.wanted.get(vm))

    def lose_all(self) -> None:
        """The machine lost its power."""
        self.lost.update(self.held)
        self.held.clear()
        self.wanted.clear()
        self.counters.clear()


def is_nothing(state: VmDataPlane) -> bool:
    """Whether a kernel that holds this holds nothing of the VM."""
    return not state.plugged and state.forwarding is Forwarding.NONE


def drift_of(found: VmDataPlane | None, wanted: VmDataPlane | None) -> str:
    """The difference of two states in words."""
    if found is None:
        return "missing"
    if wanted is None:
        return "not asked for"
    names = ("interfaces", "plugged", "forwarding", "target", "policy", "accept_from", "outside")
    return "differs in " + ", ".join(
        n.replace("_", "-") for n in names if getattr(found, n) != getattr(wanted, n)
    )
