"""A protected VM as the manager records it: its states as a table, and its durable form.

Not here: what each state asks of whom (manager_protection.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vmmobility.engine.binding_update_list import nve_from_json, nve_to_json
from vmmobility.engine.checkpoint_schedule import until_next_s
from vmmobility.engine.manager_move import CommandRefused
from vmmobility.engine.protection_record import endpoint_from_json, endpoint_to_json, record_key
from vmmobility.wire.options import Endpoint, Protection
from vmmobility.wire.values import Nve, VmKey


class ProtectRefused(CommandRefused):
    """A VM that cannot be protected, or not be protected no more, now."""


class ProtectionState(Enum):
    """Where a protection stands; durable before the next request leaves."""

    PREPARING = "preparing"  # the standby is asked to open its door
    ARMING = "arming"  # the primary is told
    ACTIVE = "active"  # checkpoints are taken
    HANDING = "handing"  # a planned move: the primary takes its last checkpoint
    TAKING_OVER = "taking-over"  # the standby was told to let the guest run: nobody else may
    FAILED = "failed"  # it could not; if its primary comes back, that serves on
    ENDING = "ending"  # both are told that it is over


class Happened(Enum):
    """Everything that can happen to a protection."""

    DOOR = "the standby's door is open"
    ARMED = "the primary has agreed"
    ATTACHED = "the primary has attached anew"
    LOST = "the primary is lost"
    HAND_OVER = "an operator moves it to its standby"
    HANDED = "the last checkpoint is complete"
    KEPT = "the last checkpoint was not taken"
    REFUSED = "the standby cannot take over"
    RETURNED = "the primary is back"
    END = "an operator ends it, or its VM is no more"


_S, _E = ProtectionState, Happened
GUARDED = (_S.ARMING, _S.ACTIVE, _S.HANDING)

TABLE: dict[tuple[ProtectionState, Happened], ProtectionState] = {
    (_S.PREPARING, _E.DOOR): _S.ARMING,
    (_S.ACTIVE, _E.DOOR): _S.ARMING,
    (_S.ARMING, _E.DOOR): _S.ARMING,
    (_S.ARMING, _E.ARMED): _S.ACTIVE,
    (_S.ACTIVE, _E.ATTACHED): _S.ARMING,
    (_S.ARMING, _E.ATTACHED): _S.ARMING,
    (_S.HANDING, _E.ATTACHED): _S.ARMING,
    (_S.FAILED, _E.ATTACHED): _S.PREPARING,
    **{(state, _E.LOST): _S.TAKING_OVER for state in GUARDED},
    (_S.ACTIVE, _E.HAND_OVER): _S.HANDING,
    (_S.HANDING, _E.HANDED): _S.TAKING_OVER,
    (_S.HANDING, _E.KEPT): _S.ARMING,
    (_S.TAKING_OVER, _E.REFUSED): _S.FAILED,
    (_S.FAILED, _E.RETURNED): _S.PREPARING,
    **{(state, _E.END): _S.ENDING for state in _S if state not in (_S.TAKING_OVER, _S.ENDING)},
}


@dataclass(slots=True)
class ProtectedVm:
    """One VM's protection.

    fencing:  the primary of this binding has agreed to pause its guest when its lease ends: without
              that nobody takes over when it is silent
    epoch, ticket: of the order to take over
    handed:   TAKING_OVER: the primary has stopped its guest for its last checkpoint, which is whole
    at_min:   a checkpoint is taken daily at this minute of the day, UTC; None: at intervals
    number:   of the last complete checkpoint; taken_at: the moment of which it is (monotonic)
    lease_at: when the primary's last refresh was accepted (monotonic; a restart grants a lifetime)
    trouble:  why the last checkpoint, or step, came to nothing
    serves:   TAKING_OVER: the standby says that it runs the guest already
    unsure:   read from records, which may be of an old backup: the standby is asked first whether
              it has taken over
    told_primary, told_standby: ENDING: who has acknowledged it
    ends_by:  ENDING: the primary has; the standby is waited for until then (monotonic)
    """

    vm: VmKey
    standby: Nve
    interval_s: float
    fail_over: bool
    lease_s: float
    state: ProtectionState = ProtectionState.PREPARING
    fencing: bool = False
    door: Endpoint | None = None
    token: str = ""
    epoch: int = 0
    ticket: bytes = b""
    number: int = 0
    handed: bool = False
    at_min: int | None = None
    # not durable
    taken_at: float | None = None
    lease_at: float = 0.0
    trouble: str = ""
    serves: bool = False
    unsure: bool = False
    told_primary: bool = False
    told_standby: bool = False
    ends_by: float | None = None
    late: bool = False

    def next_s(self, now: float, wall_s: float) -> float | None:
        """How long until the primary's next checkpoint begins, as far as is known here; None: none
        is taken now."""
        if self.state is not ProtectionState.ACTIVE:
            return None
        terms = Protection(False, round(self.interval_s * 1000), 1, "", self.at_min)
        age = self.staleness_s(now)
        return until_next_s(terms, None if age is None else wall_s - age, wall_s)

    def staleness_s(self, now: float) -> float | None:
        """The age of the last complete checkpoint; None if that is not known."""
        return None if self.taken_at is None else max(0.0, now - self.taken_at)


def protected_to_json(protected: ProtectedVm) -> dict[str, Any]:
    return {
        "standby": nve_to_json(protected.standby),
        "interval_s": protected.interval_s,
        "fail_over": protected.fail_over,
        "lease_s": protected.lease_s,
        "state": protected.state.value,
        "fencing": protected.fencing,
        "handed": protected.handed,
        "door": endpoint_to_json(protected.door),
        "token": protected.token,
        "epoch": protected.epoch,
        "ticket": protected.ticket.hex(),
        "number": protected.number,
        "at_min": protected.at_min,
    }


def protected_from_json(vm: VmKey, value: Mapping[str, Any]) -> ProtectedVm:
    return ProtectedVm(
        vm,
        nve_from_json(value["standby"]),
        value["interval_s"],
        value["fail_over"],
        value["lease_s"],
        ProtectionState(value["state"]),
        value["fencing"],
        endpoint_from_json(value["door"]) if value["door"] else None,
        value["token"],
        value["epoch"],
        bytes.fromhex(value["ticket"]),
        value["number"],
        value.get("handed", False),
        value.get("at_min"),
    )


def load_protected(state: Mapping[str, Any]) -> dict[VmKey, ProtectedVm]:
    """From the store's keys "protected/VNI/VM-ID"."""
    found = {}
    for key, value in state.items():
        kind, _, rest = key.partition("/")
        if kind == "protected":
            vni, _, vm_id = rest.partition("/")
            vm = VmKey(int(vni), vm_id)
            found[vm] = protected_from_json(vm, value)
    return found


def protected_key(vm: VmKey) -> str:
    return record_key("protected", vm)


def picture() -> str:
    """The machine as a Markdown table."""
    lines = ["| State | Happening | Next state |", "|---|---|---|"]
    lines += [f"| {s.value} | {e.value} | {to.value} |" for (s, e), to in TABLE.items()]
    return "\n".join(lines) + "\n"
