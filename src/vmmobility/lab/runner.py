"""`vmmob lab run`: a scenario from fabric up to report, however it ends.

Tear-down happens on the normal way, on a failure, on SIGINT and on SIGTERM.  Labs of earlier
runs whose owner was killed are swept first.  Not here: the steps (steps.py).
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from vmmobility.errors import LabError, VmMobilityError
from vmmobility.lab import teardown
from vmmobility.lab.findings import move_reports
from vmmobility.lab.lab_run import LabRun, MoveRecord
from vmmobility.lab.laboratory import Laboratory, build
from vmmobility.lab.narrator import Say
from vmmobility.lab.protection_findings import protections_report
from vmmobility.lab.report import (
    HandMoveReport,
    MoveReport,
    Report,
    RestartReport,
    StreamReport,
)
from vmmobility.lab.report_fabric import FabricReport
from vmmobility.lab.report_flows import FlowsReport
from vmmobility.lab.report_protections import ProtectionsReport
from vmmobility.lab.report_sizes import SizesReport
from vmmobility.lab.run_findings import hand_move_reports, restart_reports, stream_reports
from vmmobility.lab.scenario import Scenario, each
from vmmobility.lab.settled import fabric_at_end, fabric_report
from vmmobility.lab.size_findings import sizes_report
from vmmobility.lab.step_types import Protect
from vmmobility.lab.steps import Steps


@dataclass(frozen=True, slots=True)
class Options:
    """How to run: how often, where raw files go, whether the lab stays."""

    repeat: int = 1
    raw: Path | None = None
    keep: bool = False


@dataclass(slots=True)
class _Campaign:
    """What the runs have found so far."""

    moves: list[MoveReport] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    streams: list[StreamReport] = field(default_factory=list)
    restarts: list[RestartReport] = field(default_factory=list)
    by_hand: list[HandMoveReport] = field(default_factory=list)
    drains: list[dict[str, Any]] = field(default_factory=list)
    fabric: FabricReport = field(default_factory=FabricReport)
    sizes: SizesReport = field(default_factory=SizesReport)
    flows: FlowsReport = field(default_factory=FlowsReport)
    protections: ProtectionsReport = field(default_factory=ProtectionsReport)
    leftovers: list[str] = field(default_factory=list)
    tunnels: dict[str, str] = field(default_factory=dict)
    runs: int = 0
    lab: Laboratory | None = None


def run_scenario(scenario: Scenario, options: Options, say: Say) -> Report:
    """Run it as often as asked; the report says how it went.  KeyboardInterrupt after tear-down."""
    for swept in teardown.sweep():
        say(f"swept the abandoned lab {swept.lab_id} ({swept.name})")
    if options.raw is not None:
        options.raw.mkdir(parents=True, exist_ok=True)
    started_ns, begun = time.time_ns(), time.monotonic()
    campaign = _Campaign()
    with interruptible():
        try:
            for number in range(1, options.repeat + 1):
                if options.repeat > 1:
                    say(f"run {number} of {options.repeat}")
                _one_run(scenario, number, options, campaign, say)
        except VmMobilityError as error:
            failure = _failure(error, campaign.lab)
            campaign.failures.append(failure)
            say(f"failed: {failure}")
        finally:
            _close(campaign, options, say)
    return Report(
        scenario=scenario.name,
        description=scenario.description,
        fabric=scenario.fabric.name,
        runs=campaign.runs,
        started_ns=started_ns,
        duration_s=time.monotonic() - begun,
        failures=tuple(campaign.failures),
        leftovers=tuple(campaign.leftovers),
        moves=tuple(campaign.moves),
        steps=tuple(campaign.results),
        streams=tuple(campaign.streams),
        restarts=tuple(campaign.restarts),
        by_hand=tuple(campaign.by_hand),
        drains=tuple(campaign.drains),
        tunnels=tuple(sorted(campaign.tunnels.items())),
        fabric_report=campaign.fabric,
        sizes_report=campaign.sizes,
        flows_report=campaign.flows,
        protections_report=campaign.protections,
        manager=next((node.name for node in scenario.fabric.of_kind("manager")), ""),
    )


def _failure(error: VmMobilityError, lab: Laboratory | None) -> str:
    """What ended the run: whatever was asked of a daemon that has ended by itself fails, too."""
    fallen = lab.daemons.fallen() if lab is not None else ""
    return str(error) if not fallen or fallen in str(error) else f"{fallen} (seen by: {error})"


def _one_run(
    scenario: Scenario, number: int, options: Options, campaign: _Campaign, say: Say
) -> None:
    if campaign.lab is None:
        watched = any(isinstance(step, Protect) for step in each(scenario.steps))
        campaign.lab = build(scenario.fabric, scenario.name, owned=True, say=say, watched=watched)
    run = LabRun(campaign.lab, scenario, number, len(campaign.moves) + 1)
    steps = Steps(run)
    try:
        campaign.tunnels |= run.start()
        steps.carry_out(scenario.steps)
        fabric_at_end(run)
        run.stop()
    except BaseException:
        run.abort()
        raise
    campaign.runs += 1
    campaign.moves += move_reports(run, options.raw)
    campaign.failures += [*steps.failures, *unsound_guests(run.moves, number)]
    campaign.results += steps.results
    campaign.streams += stream_reports(run)
    campaign.restarts += restart_reports(run)
    campaign.by_hand += hand_move_reports(run)
    campaign.drains += run.drains
    campaign.fabric += fabric_report(run)
    campaign.sizes += sizes_report(run)
    campaign.flows += FlowsReport(tuple(run.flows.reports(number)))
    campaign.protections += protections_report(run)
    as_at_first = all(
        vm.kind != "external" and run.place_of(vm.name) == vm.home for vm in scenario.fabric.vms
    )
    last = number == options.repeat
    if not last and (steps.failures or not as_at_first):
        keep_logs(campaign.lab, options.raw, number)
        say("the scenario does not end where it began: the fabric is built anew")
        campaign.leftovers += campaign.lab.down()
        campaign.lab = None


def unsound_guests(moves: Sequence[MoveRecord], number: int) -> list[str]:
    """A guest that came back torn or spinning has not moved well, whatever the network felt."""
    return [
        f"run {number}: move {move.number}: {move.vm} is not sound: {move.soundness.reason}"
        for move in moves
        if move.soundness is not None and not move.soundness.sound
    ]


def _close(campaign: _Campaign, options: Options, say: Say) -> None:
    if campaign.lab is None:
        return
    keep_logs(campaign.lab, options.raw, campaign.runs)
    if options.keep:
        campaign.lab.info = replace(campaign.lab.info, owner=0, owner_started=0)
        campaign.lab.info.save()
        say(
            f"the lab {campaign.lab.info.lab_id} is kept: vmmob lab down {campaign.lab.info.lab_id}"
        )
        return
    campaign.leftovers += campaign.lab.down()


def keep_logs(lab: Laboratory, raw: Path | None, number: int) -> None:
    """The daemons' logs and the route recordings, beside the raw files (if these are wanted)."""
    if raw is None:
        return
    for path in [*lab.info.folder.glob("nodes/*/log.json"),
                 *lab.info.folder.glob("nodes/*/stderr.txt")]:  # fmt: skip
        target = raw / "logs" / f"run-{number}" / f"{path.parent.name}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            shutil.copy2(path, target)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt once; during tear-down more of them do nothing."""
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not seen:
            seen.append(number)
            raise KeyboardInterrupt

    try:
        old = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError as error:  # only the main thread hears signals
        raise LabError("the lab does not run in the main thread", "call it from there") from error
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
