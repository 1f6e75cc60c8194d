"""Protected VMs of one run: the steps about them, and what was seen of each.

Who ran when is told by the lab's own eyes on every QEMU (fault_eyes.py), of light VMs by the
daemons' logs; which records a checkpoint has by the standby's own disk, before it takes over.  Not
here: judging (protection_assertions.py), the report (protection_findings.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmmobility.drivers.hypervisor.checkpoint_store import CheckpointStore
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.errors import LabError
from vmmobility.lab.fabric_values import Vm
from vmmobility.lab.guest.disk_records import (
    SECTOR,
    acknowledged,
    first_acknowledged,
    lost,
    records_in,
)
from vmmobility.lab.guest_disks import RECORDS, disk_of
from vmmobility.lab.step_types import LookAtStandby, Protect
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from vmmobility.lab.lab_run import LabRun

_POLL_S = 0.02
Span = tuple[str, int, int | None]


@dataclass(frozen=True, slots=True)
class StandbyLook:
    """What the last complete checkpoint has on its disk.

    last: the newest record; missing: those before it that should be there and are not
    """

    checkpoint: int
    last: int
    missing: tuple[int, ...]


@dataclass(slots=True)
class Protection:
    """One VM's, from the step that began it.

    strike:    the first fault after that, if any; struck_ns: when; done_ns: when it was carried out
    """

    vm: str
    primary: str
    standby: str
    every_s: float
    lease_s: float
    begun_ns: int
    strike: str = ""
    struck_ns: int = 0
    done_ns: int = 0
    look: StandbyLook | None = None


class Protections:
    """Of one run."""

    def __init__(self) -> None:
        self.all: list[Protection] = []

    def of(self, vm: str) -> Protection:
        """The VM's last.  Raises LabError."""
        found = [protection for protection in self.all if protection.vm == vm]
        if not found:
            raise LabError(f"{vm} was not protected", "the step `protect` comes first")
        return found[-1]

    def begin(self, run: LabRun, step: Protect) -> None:
        """Have it protected, and wait for its checkpoints."""
        daemons = run.lab.daemons
        primary = run.place_of(step.vm)
        body: dict[str, Any] = {"vni": 0, "to": step.to, "every_s": step.every_s}
        body |= {"fail_over": True}
        body |= {"lease_s": step.lease_s} if step.lease_s is not None else {}
        begun_ns = time.time_ns()
        row = daemons.ask(daemons.manager, "POST", f"/v1/vms/{step.vm}/protection", body)
        self.all.append(
            Protection(step.vm, primary, step.to, step.every_s, row["lease_s"], begun_ns)
        )
        deadline = time.monotonic() + step.timeout_s
        while row["state"] != "active" or row["checkpoint"] < step.checkpoints:
            if time.monotonic() > deadline:
                seen = f"{row['state']}, checkpoint {row['checkpoint']}, {row['reason'] or 'well'}"
                raise LabError(
                    f"{step.vm} has not {step.checkpoints} checkpoints at {step.to} within "
                    f"{step.timeout_s:g} s: {seen}",
                    "see the NVEs' logs",
                )
            run.pause(_POLL_S)
            rows = daemons.ask(daemons.manager, "GET", "/v1/protected")
            row = next((r for r in rows if r["vm"] == step.vm), row)
        run.lab.say(f"{step.vm}: checkpoint {row['checkpoint']} is complete at {step.to}")

    def strike(self, what: str) -> None:
        """A fault is about to be done; the first of each protection counts."""
        for protection in self._unstruck():
            protection.strike, protection.struck_ns = what, time.time_ns()

    def struck(self) -> None:
        """It was done."""
        for protection in self.all:
            if protection.strike and not protection.done_ns:
                protection.done_ns = time.time_ns()

    def _unstruck(self) -> Iterator[Protection]:
        return (protection for protection in self.all if not protection.strike)

    def look(self, run: LabRun, step: LookAtStandby) -> None:
        """Read the standby's disk as of its last checkpoint."""
        protection = self.of(step.vm)
        deadline = time.monotonic() + step.timeout_s
        while (found := look_at(run, protection)) is None:
            if time.monotonic() > deadline:
                raise LabError(
                    f"{protection.standby} has not finished a checkpoint of {step.vm} within "
                    f"{step.timeout_s:g} s",
                    "see its log",
                )
            run.pause(_POLL_S)
        protection.look = found
        run.lab.say(f"checkpoint {found.checkpoint} of {step.vm} has records up to {found.last}")


def look_at(run: LabRun, protection: Protection) -> StandbyLook | None:
    """None while a checkpoint is being worked in."""
    vm = run.lab.fabric.vm(protection.vm)
    store = _store(run, protection.standby, vm)
    record = store.peek()
    if record is None or not record.number:
        raise LabError(f"{protection.standby} has no checkpoint of {vm.name}", "protect it longer")
    if record.activated:
        raise LabError(f"{protection.standby} has taken {vm.name} over", "look before")
    if record.merge:
        return None
    with store.image_of(0).open("rb") as image:
        written = image.read(RECORDS * SECTOR)
    if store.peek() != record:
        return None
    last = max(records_in(written, RECORDS), default=0)
    return StandbyLook(record.number, last, tuple(lost(written, RECORDS, last)))


def _store(run: LabRun, node: str, vm: Vm) -> CheckpointStore:
    """The standby's own, to be read only."""
    guests = run.lab.daemons.state_dir(node) / "guests"
    definition = VmDefinition(VmKey(0, vm.name), "qemu", (), disks=(disk_of(vm),))
    return CheckpointStore(definition, guests / "standby", guests / "disks")


@dataclass(frozen=True, slots=True)
class Records:
    """What the guest's own records say of a fail-over; None: it has not run at the standby yet.

    at_strike:   the last that the guest was told is on the primary's disk
    first_after: the first of which it tells at the standby: what its memory knew, and one more
    """

    at_strike: int
    in_checkpoint: int
    first_after: int | None
    missing: int

    @property
    def of_one_moment(self) -> bool | None:
        """Whether memory and disk are of one moment: the memory goes on with the record after the
        disk's last, or writes that one again whose acknowledgement it had not seen.  Up to two
        that it was told of may still have waited for the console."""
        if self.first_after is None:
            return None
        return -2 <= self.first_after - self.in_checkpoint <= 1


def records(run: LabRun, protection: Protection) -> Records | None:
    """None for a VM that writes none, or at whose standby nobody has looked."""
    eyes, look = run.lab.eyes, protection.look
    if eyes is None or look is None:
        return None
    first = first_acknowledged(eyes.console_of(protection.standby)) or None
    last = acknowledged(eyes.console_of(protection.primary))
    return Records(last, look.last, first, len(look.missing))


@dataclass(frozen=True, slots=True)
class WhoRan:
    """About one strike; CLOCK_REALTIME.  both_ms: for how long two copies have run at a time."""

    primary_last_ns: int | None
    standby_first_ns: int | None
    both_ms: float


def who_ran(run: LabRun, protection: Protection) -> WhoRan:
    """By QEMU's own times of STOP and RESUME; of light VMs, by the daemons' words."""
    if run.lab.fabric.vm(protection.vm).kind == "guest" and run.lab.eyes is not None:
        spans = [span for span in run.lab.eyes.spans() if span[2] != span[1]]
    else:
        spans = _told_spans(run, protection)
    return about(spans, protection, time.time_ns())


def about(spans: list[Span], protection: Protection, now_ns: int) -> WhoRan:
    """From these spans, of all nodes."""
    mine = [(s, now_ns if e is None else e) for n, s, e in spans if n == protection.primary]
    others = [
        (s, now_ns if e is None else e)
        for n, s, e in spans
        if n == protection.standby and s >= protection.struck_ns
    ]
    both = [min(e, f) - max(s, t) for s, e in mine for t, f in others]
    return WhoRan(
        max((e for s, e in mine if not others or s < others[0][0]), default=None),
        min((s for s, _ in others), default=None),
        max(0.0, max(both, default=0) / 1e6),
    )


def _told_spans(run: LabRun, protection: Protection) -> list[Span]:
    """A light VM's network card copies frames or does not: no more is known of it than this."""
    spans: list[Span] = [(protection.primary, protection.begun_ns, None)]
    if "dark" in protection.strike:
        spans = [(protection.primary, protection.begun_ns, protection.done_ns)]
    for event in run.lab.logbook.events():
        if event.vm != protection.vm or event.ts_ns < protection.struck_ns:
            continue
        here = [i for i, span in enumerate(spans) if span[0] == event.node and span[2] is None]
        if event.name in ("guest.fenced", "guest.overtaken"):
            for index in here:
                spans[index] = (event.node, spans[index][1], event.at_ns)
        elif event.name in ("guest.resumed", "guest.started", "guest.unfenced") and not here:
            spans.append((event.node, event.at_ns, None))
    return spans
