"""`vmmob lab run fault-matrix`: the chosen cells one after another in one fabric, and the report.

Not here: a cell (fault_cells.py), the table (fault_table.py), how it looks (fault_report.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmmobility.errors import LabError, VmMobilityError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import teardown, workdir
from vmmobility.lab.fault_cells import Played
from vmmobility.lab.fault_eyes import Eyes
from vmmobility.lab.fault_judging import Verdict
from vmmobility.lab.fault_looks import Looks
from vmmobility.lab.fault_moves import MovePlayer
from vmmobility.lab.fault_report import NOT_STRUCK, FaultReport
from vmmobility.lab.fault_rest import Rest
from vmmobility.lab.fault_strikes import Strikes
from vmmobility.lab.fault_table import Cell, chosen
from vmmobility.lab.fault_terms import Outcome
from vmmobility.lab.fault_warm import WARM
from vmmobility.lab.fault_warm_cells import WarmPlayer
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.laboratory import Laboratory
from vmmobility.lab.narrator import Say
from vmmobility.lab.runner import interruptible, keep_logs
from vmmobility.lab.scenario import Scenario

NAME = "fault-matrix"
DESCRIPTION = "Every fault in every phase of every way to move: what becomes of the VM"
SETTINGS = ("quick", "mode", "phase", "fault", "resume")


@dataclass(frozen=True, slots=True)
class MatrixOptions:
    """written: told after each cell.  resume: an earlier report, whose cells that were as expected
    are not played again."""

    raw: Path | None = None
    written: Callable[[FaultReport], None] = lambda report: None
    keep: bool = False
    resume: Path | None = None


def check_settings(settings: Mapping[str, str]) -> list[Cell]:
    """The cells that `--set` chooses; LabError if it cannot be."""
    for key in settings:
        if key not in SETTINGS:
            raise LabError(f"there is no setting {key!r}", f"settings: {', '.join(SETTINGS)}")
    cells = chosen(settings)
    if not cells:
        raise LabError("no cell is chosen", "that phase is not one of that mode")
    return cells


def run_matrix(settings: Mapping[str, str], options: MatrixOptions, say: Say) -> FaultReport:
    """Play them; the report says how they went.  KeyboardInterrupt after tear-down."""
    cells = check_settings(settings)
    earlier = _earlier(options.resume)
    for swept in teardown.sweep():
        say(f"swept the abandoned lab {swept.lab_id} ({swept.name})")
    report = FaultReport(NAME, DESCRIPTION, dict(settings), time.time_ns())
    begun = time.monotonic()
    with interruptible():
        campaign = _Campaign(options, say)
        try:
            for number, cell in enumerate(cells, 1):
                found = earlier.get((cell.mode, cell.phase, cell.fault))
                if found is None:
                    found = campaign.play(cell).as_json()
                report.cells.append(found)
                report.duration_s = time.monotonic() - begun
                options.written(report)
                say(f"cell {number} of {len(cells)}: {cell.name}: {_verdict(found)}")
        except VmMobilityError as error:
            report.failures.append(str(error))
            say(f"failed: {error}")
        finally:
            report.leftovers += campaign.close()
            report.duration_s = time.monotonic() - begun
    return report


def _verdict(cell: Mapping[str, Any]) -> str:
    if cell["outcome"] == NOT_STRUCK:
        return str(cell["outcome"])
    words = f"{cell['outcome']}, {cell['seconds']:.0f} s"
    return words if cell["ok"] else f"NOT AS EXPECTED: {words}: {cell['problem']}"


def _earlier(path: Path | None) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The cells of an earlier report that were as expected."""
    if path is None or not path.exists():
        return {}
    try:
        cells = json.loads(path.read_text())["cells"]
        return {(c["mode"], c["phase"], c["fault"]): c for c in cells if c["ok"]}
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{path} is no report of the fault matrix", "give another") from error


class _Campaign:
    """The lab in which cells are played: made when one needs it, anew when one has broken it."""

    def __init__(self, options: MatrixOptions, say: Say) -> None:
        self._options = options
        self._say = say
        self._stage: _Stage | None = None
        self._stages = 0
        self._left: list[str] = []

    def play(self, cell: Cell) -> Played:
        if cell.row.allowed == (Outcome.NOT_APPLICABLE,):
            return Played(cell, Verdict(Outcome.NOT_APPLICABLE, ""))
        if self._stage is None:
            self._stages += 1
            self._stage = _Stage(self._options, self._say)
            self._stage.up()
        begun = time.monotonic()
        try:
            player = self._stage.player(cell.mode)
            played = player.play(cell)
        except VmMobilityError as error:
            self._say(f"{cell.name}: {error}")
            self._drop()
            verdict = Verdict(Outcome.BROKEN, error.message)
            return Played(cell, verdict, seconds=time.monotonic() - begun)
        if player.spoilt:
            self._say(f"the fabric is built anew: {player.spoilt}")
            self._drop()
        return played

    def _drop(self) -> None:
        if self._stage is not None:
            keep_logs(self._stage.lab, self._options.raw, self._stages)
            self._left += self._stage.down()
            self._stage = None

    def close(self) -> list[str]:
        """What is left of all labs."""
        if self._stage is not None and self._options.keep:
            self._stage.keep()
            self._say(f"the lab {self._stage.lab.info.lab_id} is kept")
            self._stage = None
        self._drop()
        return self._left


class _Stage:
    """One lab with its eyes and its guest."""

    def __init__(self, options: MatrixOptions, say: Say) -> None:
        self._raw = options.raw
        fabric = fabrics.load_fabric(fabrics.find(NAME))
        self.lab = Laboratory(fabric, workdir.create(NAME, fabric.name, owned=True), say)
        homes = {nve.name: self.lab.daemons.home(nve.name) for nve in fabric.of_kind("nve")}
        self.eyes = Eyes(homes, self.lab.info.folder / "consoles")
        self.strikes = Strikes(self.lab, self.eyes)
        self._fabric = fabric
        self._looks: Looks

    def player(self, mode: str) -> MovePlayer | WarmPlayer:
        """Who plays that mode's cells."""
        kind = WarmPlayer if mode == WARM.name else MovePlayer
        return kind(self.lab, self.eyes, self.strikes, self._looks)

    def up(self) -> None:
        """The fabric, then the VM: its NVEs need folders of their own first."""
        lab, fabric = self.lab, self._fabric
        try:
            lab.daemons.first_in_path = self.eyes.open()
            self.strikes.make_room()
            lab.up(start_vms=False)
            scenario = Scenario(NAME, DESCRIPTION, fabric, (), ())
            asker = fabric.of_kind("correspondent")[0].name
            looks = Looks(LabRun(lab, scenario, 1, 1), fabric.vms[0], asker)
            self._looks = looks
            rest = Rest(lab, self.eyes, looks)
            rest.revive(anew=True)
            rest.come()
        except BaseException:
            keep_logs(lab, self._raw, 0)
            self.down()
            raise

    def keep(self) -> None:
        """Let it live on without this process."""
        self.lab.info = replace(self.lab.info, owner=0, owner_started=0)
        self.lab.info.save()
        self.eyes.close()
        self.lab.detach()

    def down(self) -> list[str]:
        """End it; what is left."""
        self.eyes.close()
        return self.lab.down()
