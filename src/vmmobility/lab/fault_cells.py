"""One cell of the matrix played: a fault in one phase, what comes of it, and back.

What is common to all modes; a mode says how its phases come and what it waits for (fault_moves.py,
fault_warm_cells.py).  Not here: which cells (fault_table.py), faults (fault_strikes.py), looking
(fault_looks.py, fault_eyes.py), what is at rest (fault_rest.py), the verdict (fault_judging.py).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vmmobility.errors import LabError
from vmmobility.lab import fault_terms as terms
from vmmobility.lab.fault_eyes import Eyes
from vmmobility.lab.fault_holds import Holds, Roles, await_true
from vmmobility.lab.fault_judging import STATED_S, Seen, Verdict, judge
from vmmobility.lab.fault_looks import Looks
from vmmobility.lab.fault_rest import SETTLE_S, Rest
from vmmobility.lab.fault_strikes import Strikes
from vmmobility.lab.fault_table import Cell
from vmmobility.lab.fault_terms import CUTS, FAULTS, Outcome
from vmmobility.lab.laboratory import Laboratory

TRIES = 3
REACH_S, SETTLE_POLL_S = 30.0, 0.25
UNSETTLED_S = 5.0  # patience with a lab in which a cell went wrong
ANSWER_S = 30.0  # one that boots takes so long on a busy machine
CUT_LEAST_S = 3.0  # a fault that ends with the manager's word lasts at least so long
CUT_MOST_S = 15.0  # and a cut, of which nobody may say more, no longer: that is beyond a lease
# These strike before anything is asked for, where their phase is the first: what they break is
# looked at when it begins.
BEFORE, FIRST = ("disk-full", "out-of-memory", "wrong-image"), (terms.PREPARING, terms.FIRST_COPY)
# No QEMU is at the destination yet.
NO_QEMU = (
    terms.SUSPENDING, terms.PREPARING, terms.FIRST_COPY, terms.CHECKPOINTING, terms.PROTECTED,
    terms.FAILING_OVER, terms.LAST_CHECKPOINT, terms.HANDED_OVER,
)  # fmt: skip
At = TypeVar("At", str, list[str])


class Missed(LabError):
    """The phase was over before the fault could strike, or never came."""


@dataclass(slots=True)
class Played:
    """What came of one cell."""

    cell: Cell
    verdict: Verdict
    seen: Seen | None = None
    struck: str = ""
    tries: int = 1
    seconds: float = 0.0
    drift_repaired: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """One of the report's `cells`."""
        seen = self.seen
        return {
            "mode": self.cell.mode,
            "phase": self.cell.phase,
            "fault": self.cell.fault,
            "expected": self.cell.expected,
            "outcome": self.verdict.outcome.value,
            "ok": self.verdict.ok,
            "problem": self.verdict.problem,
            "why": self.cell.row.why,
            "running_at": list(seen.running_at) if seen else [],
            "acknowledged_writes": seen.acknowledged if seen else None,
            "acknowledged_writes_lost": seen.lost if seen else 0,
            "leftovers": list(seen.leftovers) if seen else [],
            "kept": self.kept,
            "drift": list(seen.drift) if seen else [],
            "drift_repaired": self.drift_repaired,
            "from": seen.source if seen else None,
            "to": seen.destination if seen else None,
            "said": seen.said if seen else "",
            "said_after_s": None if seen is None or seen.said_s is None else round(seen.said_s, 2),
            "twice_ms": seen.twice_ms if seen else 0.0,
            "struck": self.struck,
            "tries": self.tries,
            "seconds": round(self.seconds, 1),
        }


class Words(ABC):
    """What the manager has said since the strike, and when first."""

    def __init__(self, looks: Looks, move_id: str) -> None:
        self.move_id = move_id
        self._looks = looks
        self._struck_s = time.monotonic()
        self._said: dict[str, float] = {}
        self._ended_s: float | None = None
        self._loss_s: float | None = None

    def struck(self) -> None:
        """From now on it counts."""
        self._struck_s = time.monotonic()

    @property
    def passed_s(self) -> float:
        """Since the strike."""
        return time.monotonic() - self._struck_s

    @abstractmethod
    def listen(self) -> None:
        """Hear what it says now."""

    def note(self, ended: str, loss: str) -> None:
        """It says how this ended, that the VM is lost; "" if it does not."""
        now_s = self.passed_s
        for word in (ended, loss):
            if word:
                self._said.setdefault(word, now_s)
        if (ended or loss) and self._ended_s is None:
            self._ended_s = now_s
        if loss and self._loss_s is None:
            self._loss_s = now_s

    def told(self, runs: bool) -> float | None:
        """When it has said so much as there is to say: that the VM is lost, unless it runs."""
        return self._ended_s if runs else self._loss_s

    def text(self) -> str:
        """All of it, in order."""
        return " -> ".join(self._said)


class Player(ABC):
    """Plays cells in one lab, one after another; in between one guest runs, at rest."""

    def __init__(self, lab: Laboratory, eyes: Eyes, strikes: Strikes, looks: Looks) -> None:
        self.lab = lab
        self.eyes = eyes
        self.strikes = strikes
        self.looks = looks
        self.rest = Rest(lab, eyes, looks)
        self.vm = lab.fabric.vms[0]
        self.drift: list[str] = []
        self.last_drift: list[str] = []
        self.kept: list[str] = []
        self.spoilt = ""  # why no other cell can be played in this lab

    # -- what a mode says ------------------------------------------------------------------------

    @abstractmethod
    def begin(self, cell: Cell, roles: Roles, holds: Holds) -> Words:
        """Ask for what the cell is about; who listens to what the manager says of it."""

    @abstractmethod
    def reach(self, cell: Cell, roles: Roles, holds: Holds, words: Words, since_ns: int) -> None:
        """Until the phase is there; Missed if it is over, or does not come."""

    @abstractmethod
    def wait(
        self, cell: Cell, roles: Roles, words: Words, began_ns: int
    ) -> tuple[list[str], list[str], str]:
        """Until all is at rest: where it runs, what is open, and what else went wrong."""

    @abstractmethod
    def records(self, cell: Cell, roles: Roles, where: str) -> tuple[int, int]:
        """(records that must survive, those of them that are lost) of the image at `where`."""

    def mend(self, cell: Cell, roles: Roles) -> None:
        """The fault is over."""
        self.strikes.mend(cell.fault, roles)

    def lasts_s(self, fault: terms.Fault) -> tuple[float, float]:
        """The least and the most that a fault lasts."""
        if fault.lasts_s is not None:
            return fault.lasts_s, fault.lasts_s
        return CUT_LEAST_S, CUT_MOST_S if fault.name in CUTS else STATED_S

    def let_go(self) -> None:  # noqa: B027 (most modes leave nothing)
        """After a phase that was missed: the VM as it was."""

    def stands_still(self, cell: Cell) -> bool:
        """Whether the VM is not to run meanwhile."""
        return False

    # -- a cell ----------------------------------------------------------------------------------

    def play(self, cell: Cell) -> Played:
        """Until it was struck, TRIES times at most; the guest is at rest again afterwards."""
        begun = time.monotonic()
        tries = 0
        while True:
            tries += 1
            try:
                seen, struck = self._once(cell)
                played = Played(cell, judge(seen, cell.row), seen, struck=struck)
            except Missed as missed:
                played = Played(cell, Verdict(Outcome.MISSED, str(missed)))
                if tries < TRIES:
                    self.let_go()
                    self.rest.come()
                    continue
            played.tries, played.drift_repaired, played.kept = tries, self.drift, self.kept
            played.seconds = time.monotonic() - begun
            try:
                self.rest.come(SETTLE_S if played.verdict.ok else UNSETTLED_S)
                self.eyes.forget_the_dead()
            except LabError as error:
                self.spoilt = error.message
            return played

    def _once(self, cell: Cell) -> tuple[Seen, str]:
        self.drift, self.kept = [], []
        if cell.fault == "disk-full":
            self.rest.have_room_for_records()
        roles = self._roles()
        if self.stands_still(cell):
            self.rest.stop()
        began_ns = time.time_ns()
        struck = ""
        with self._holding(roles) as holds:
            early = cell.fault in BEFORE and cell.phase in FIRST
            if early:
                struck = self.strikes.strike(cell.fault, roles, before=True)
            words = self.begin(cell, roles, holds)
            if not early:
                self.reach(cell, roles, holds, words, began_ns)
                struck = self.strikes.strike(cell.fault, roles, before=cell.phase in NO_QEMU)
            words.struck()
        self._await_words(cell, words)
        self.mend(cell, roles)
        return self._settle(cell, roles, words, began_ns), struck

    def _roles(self) -> Roles:
        """The guest moves from where it is."""
        at = self.eyes.running_at()
        if len(at) != 1:
            raise LabError(f"the guest runs at {at or 'no NVE'} before the cell", "see the logs")
        others = [nve.name for nve in self.lab.fabric.of_kind("nve") if nve.name != at[0]]
        return Roles(at[0], others[0], self.lab.daemons.manager)

    @contextmanager
    def _holding(self, roles: Roles) -> Iterator[Holds]:
        holds = Holds(self.lab, roles)
        try:
            yield holds
        finally:
            self.eyes.hear = None
            holds.release()

    def _await_words(self, cell: Cell, words: Words) -> None:
        """Until the manager has said what there is to say, while the fault lasts."""
        least_s, most_s = self.lasts_s(FAULTS[cell.fault])
        while (passed := words.passed_s) < most_s:
            words.listen()
            runs = self.stands_still(cell) or bool(self.eyes.heard_at())
            if words.told(runs) and passed >= least_s:
                break
            time.sleep(0.05)

    def _settle(self, cell: Cell, roles: Roles, words: Words, began_ns: int) -> Seen:
        """Wait until all is at rest; what is there then."""
        wrong = ""
        if cell.fault == "wrong-image":
            wrong = self.strikes.untouched(roles.destination)
        at, points, problem = self.wait(cell, roles, words, began_ns)
        where = at[0] if at else self.looks.newest()
        self.kept += self.looks.kept(where)
        last, lost = self.records(cell, roles, where)
        deaf = self.looks.deaf(ANSWER_S) if len(at) == 1 else ""
        serving = at[0] if len(at) == 1 else ""
        if not at and self.looks.stopped():
            serving = where = str(self.rest.binding().get("nve", ""))
        # A host that is back is told where the VM is, and drains that: what was clear is not yet.
        await_true(lambda: not self.looks.leftovers(serving, where), ANSWER_S)
        return Seen(
            roles.source, roles.destination, tuple(at), self.eyes.twice_ms(began_ns),
            words.text(), words.told(bool(at)), not deaf, deaf, last, lost,
            tuple(self.looks.leftovers(serving, where)),
            tuple(self.last_drift), wrong or problem or open_words(points),
        )  # fmt: skip

    # -- for modes -------------------------------------------------------------------------------

    def settle_by(
        self, words: Words, look: Callable[[], tuple[At, list[str]]]
    ) -> tuple[At, list[str]]:
        """Until nothing is open any more, and the comparison finds nothing."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            at, points = look()
            words.listen()
            self.last_drift = []
            if not points:
                self.last_drift = self.looks.drift() if at else []
                self.drift += self.last_drift
            if (not points and not self.last_drift) or time.monotonic() > deadline:
                return at, points
            time.sleep(SETTLE_POLL_S)

    def copies_memory(self, node: str) -> bool:
        """Whether its guest's memory goes somewhere."""
        found = self.eyes.ask(node, "query-migrate")
        sent = int((found.get("ram") or {}).get("transferred", 0))
        return found.get("status") == "active" and sent > 0

    def await_log(self, line: tuple[str, str], since_ns: int) -> bool:
        """Whether that node has written that event in time."""
        return await_true(lambda: self.logged(line, since_ns), REACH_S)

    def logged(self, line: tuple[str, str], since_ns: int) -> bool:
        """Whether it has by now."""
        node, name = line
        return any(
            event.ts_ns >= since_ns and (event.node, event.name) == (node, name)
            for event in self.lab.logbook.events()
        )


def open_words(points: list[str]) -> str:
    """What is not at rest, in words."""
    return "not at rest: " + "; ".join(points) if points else ""
