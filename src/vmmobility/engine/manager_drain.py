"""One drain as the manager records it: an NVE that is emptied, VM by VM; and its durable form.

Not here: what a drain does (manager_drains.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from vmmobility.engine.manager_move import CommandRefused
from vmmobility.wire.values import VmKey

PARALLEL = 4  # moves at once, unless the operator says otherwise
MOST_PARALLEL = 64
MODES = ("auto",)  # how VMs are moved; auto: as their guests' state asks for


class DrainState(Enum):
    RUNNING = "running"
    ABORTING = "aborting"  # no move is begun any more; those under way go on to their end
    DONE = "done"
    INCOMPLETE = "incomplete"  # VMs are left that cannot be moved
    ABORTED = "aborted"


ENDED = frozenset({DrainState.DONE, DrainState.INCOMPLETE, DrainState.ABORTED})


class Stage(Enum):
    """Of one VM of a drain."""

    WAITING = "waiting"
    MOVING = "moving"
    MOVED = "moved"
    LEFT = "left"  # it is registered no more
    FAILED = "failed"  # given up: it is still there, and the reason is told


SETTLED = frozenset({Stage.MOVED, Stage.LEFT, Stage.FAILED})


class Turn(Enum):
    """What may happen to a VM of a drain."""

    BEGUN = "begun"  # a move away from the NVE is under way, the drain's or another's
    RETURNED = "returned"  # its move was given up
    EXHAUSTED = "exhausted"  # it was tried as often as it may be
    ARRIVED = "arrived"  # another NVE serves it
    GONE = "gone"  # it has no binding
    BACK = "back"  # the NVE serves it (again)


STAGES: Mapping[tuple[Stage, Turn], Stage] = {
    (Stage.WAITING, Turn.BEGUN): Stage.MOVING,
    (Stage.WAITING, Turn.EXHAUSTED): Stage.FAILED,
    (Stage.WAITING, Turn.ARRIVED): Stage.MOVED,
    (Stage.WAITING, Turn.GONE): Stage.LEFT,
    (Stage.MOVING, Turn.RETURNED): Stage.WAITING,
    (Stage.MOVING, Turn.EXHAUSTED): Stage.FAILED,
    (Stage.MOVING, Turn.ARRIVED): Stage.MOVED,
    (Stage.MOVING, Turn.GONE): Stage.LEFT,
    (Stage.MOVED, Turn.BACK): Stage.WAITING,
    (Stage.LEFT, Turn.BACK): Stage.WAITING,
    # A VM that was given up may still be moved by hand.
    (Stage.FAILED, Turn.ARRIVED): Stage.MOVED,
    (Stage.FAILED, Turn.GONE): Stage.LEFT,
}
"""What becomes of a VM; what does not stand here changes nothing."""


class DrainRefused(CommandRefused):
    """A drain, or a cordon, that cannot be."""


@dataclass(slots=True)
class DrainedVm:
    """attempts: moves that the drain began; to: where the last one went, or it is now.

    tried:      NVEs to which a move has failed: the others are preferred
    refused:    how often in a row no move could begin (not durable)
    not_before: when the next one may (not durable)
    """

    vm: VmKey
    stage: Stage = Stage.WAITING
    move_id: str = ""
    to: str = ""
    attempts: int = 0
    reason: str = ""
    tried: tuple[str, ...] = ()
    refused: int = 0
    not_before: float = 0.0


@dataclass(slots=True)
class Drain:
    """to: the only NVEs that take its VMs, none named is any; uncordon: when it has ended, the NVE
    takes VMs again."""

    drain_id: str
    nve_id: str
    to: tuple[str, ...] = ()
    parallel: int = PARALLEL
    mode: str = MODES[0]
    uncordon: bool = False
    state: DrainState = DrainState.RUNNING
    started_ns: int = 0
    ended_ns: int = 0
    vms: dict[VmKey, DrainedVm] = field(default_factory=dict)

    @property
    def ok(self) -> bool | None:
        return self.state is DrainState.DONE if self.state in ENDED else None

    @property
    def key(self) -> str:
        return f"drain/{self.drain_id}"

    def count(self, stage: Stage) -> int:
        return sum(each.stage is stage for each in self.vms.values())


def vm_key(drain: Drain, vm: VmKey) -> str:
    """The record's key of one of its VMs."""
    return f"drain-vm/{drain.drain_id}/{vm.vni}/{vm.vm_id}"


def drain_to_json(drain: Drain) -> dict[str, Any]:
    return {
        "nve": drain.nve_id,
        "to": list(drain.to),
        "parallel": drain.parallel,
        "mode": drain.mode,
        "uncordon": drain.uncordon,
        "state": drain.state.value,
        "started_ns": drain.started_ns,
        "ended_ns": drain.ended_ns,
    }


def drained_to_json(each: DrainedVm) -> dict[str, Any]:
    return {
        "stage": each.stage.value,
        "move": each.move_id,
        "to": each.to,
        "attempts": each.attempts,
        "reason": each.reason,
        "tried": list(each.tried),
    }


def drains_from(state: Mapping[str, Any]) -> dict[str, Drain]:
    """The drains on record, oldest first."""
    found = {}
    for key, value in state.items():
        if key.startswith("drain/"):
            drain_id = key.removeprefix("drain/")
            found[drain_id] = Drain(
                drain_id,
                value["nve"],
                tuple(value["to"]),
                value["parallel"],
                value["mode"],
                value["uncordon"],
                DrainState(value["state"]),
                value["started_ns"],
                value["ended_ns"],
            )
    for key, value in state.items():
        if key.startswith("drain-vm/"):
            _, drain_id, vni, vm_id = key.split("/", 3)
            vm = VmKey(int(vni), vm_id)
            if drain_id in found:
                found[drain_id].vms[vm] = DrainedVm(
                    vm,
                    Stage(value["stage"]),
                    value["move"],
                    value["to"],
                    value["attempts"],
                    value["reason"],
                    tuple(value["tried"]),
                )
    return dict(sorted(found.items(), key=lambda item: item[1].started_ns))
