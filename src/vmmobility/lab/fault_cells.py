"""One cell of the matrix played: a move, a fault in one of its phases, what comes of it, and back.

Not here: which cells (fault_table.py), how phases are held (fault_holds.py), faults
(fault_strikes.py), looking (fault_looks.py, fault_eyes.py), what is at rest (fault_rest.py), the
verdict (fault_judging.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vmmobility.errors import LabError
from vmmobility.lab import fault_terms as terms
from vmmobility.lab.fault_eyes import Eyes
from vmmobility.lab.fault_holds import APPROACHES, Approach, Holds, Roles, await_true
from vmmobility.lab.fault_judging import STATED_S, Seen, Verdict, judge
from vmmobility.lab.fault_looks import Looks
from vmmobility.lab.fault_rest import SETTLE_S, Rest
from vmmobility.lab.fault_strikes import Strikes
from vmmobility.lab.fault_table import Cell
from vmmobility.lab.fault_terms import CUTS, FAULTS, Outcome
from vmmobility.lab.guest.disk_records import acknowledged
from vmmobility.lab.laboratory import Laboratory

TRIES = 3
REACH_S, SETTLE_POLL_S = 30.0, 0.25
UNSETTLED_S = 5.0  # patience with a lab in which a cell went wrong
ANSWER_S = 10.0
CUT_LEAST_S = 3.0  # a fault that ends with the manager's word lasts at least so long
CUT_MOST_S = 15.0  # and a cut, of which nobody may say more, no longer: that is beyond a lease
# These strike before the move is asked for: what they break is looked at when it begins.
BEFORE = ("disk-full", "out-of-memory", "wrong-image")
EARLY = (terms.SUSPENDING, terms.PREPARING)  # no QEMU is at the destination yet
STOPPED_MODES = ("cold-stopped",)
MODES_ASKED = {"hot": "hot", "cold-suspended": "cold", "cold-stopped": "cold"}
At = TypeVar("At", str, list[str])


class Missed(LabError):
    """The phase was over before the fault could strike, or never came."""


@dataclass(slots=True)
class Played:
    """What came of one cell."""

    cell: Cell
    verdict: Verdict
    seen: Seen | None = None
    reason: str = ""
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
            "why": self.cell.row.why if self.cell.row else self.reason,
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


class Words:
    """What the manager has said since the strike, and when first."""

    def __init__(self, looks: Looks, move_id: str) -> None:
        self.move_id = move_id
        self._looks = looks
        self._struck_s = time.monotonic()
        self._said: dict[str, float] = {}
        self._ended_s: float | None = None
        self._loss_s: float | None = None

    @property
    def passed_s(self) -> float:
        """Since the strike."""
        return time.monotonic() - self._struck_s

    def listen(self) -> None:
        """Hear what it says now."""
        ended, loss = self._looks.ended(self.move_id), self._looks.loss(self.move_id)
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


class Player:
    """Plays cells in one lab, one after another; in between one guest runs, at rest."""

    def __init__(self, lab: Laboratory, eyes: Eyes, strikes: Strikes, looks: Looks) -> None:
        self._lab = lab
        self._eyes = eyes
        self._strikes = strikes
        self._looks = looks
        self._rest = Rest(lab, eyes, looks)
        self._vm = lab.fabric.vms[0]
        self._drift: list[str] = []
        self._last_drift: list[str] = []
        self._kept: list[str] = []
        self.spoilt = ""  # why no other cell can be played in this lab

    def play(self, cell: Cell) -> Played:
        """Until it was struck, TRIES times at most; the guest is at rest again afterwards."""
        begun, row = time.monotonic(), cell.row
        assert row is not None
        tries = 0
        while True:
            tries += 1
            try:
                seen, struck = self._once(cell)
                played = Played(cell, judge(seen, row), seen, struck=struck)
            except Missed as missed:
                played = Played(cell, Verdict(Outcome.MISSED, str(missed)))
                if tries < TRIES:
                    self._rest.come()
                    continue
            played.tries, played.drift_repaired, played.kept = tries, self._drift, self._kept
            played.seconds = time.monotonic() - begun
            try:
                self._rest.come(SETTLE_S if played.verdict.ok else UNSETTLED_S)
            except LabError as error:
                self.spoilt = error.message
            return played

    # -- one try ---------------------------------------------------------------------------------

    def _once(self, cell: Cell) -> tuple[Seen, str]:
        self._drift = []
        if cell.fault == "disk-full":
            self._rest.have_room_for_records()
        roles, fault = self._roles(), FAULTS[cell.fault]
        approach = APPROACHES[cell.mode, cell.phase]
        early = cell.fault in BEFORE and cell.phase == terms.PREPARING
        stopped = cell.mode in STOPPED_MODES
        if stopped:
            self._rest.stop()
        began_ns = time.time_ns()
        struck = ""
        with self._holding(roles, approach) as holds:
            if early:
                struck = self._strikes.strike(cell.fault, roles, before=True)
            move_id = self._ask(roles, MODES_ASKED[cell.mode])
            if not early:
                self._reach(approach, holds, roles, move_id, began_ns)
                struck = self._strikes.strike(cell.fault, roles, before=cell.phase in EARLY)
            words = Words(self._looks, move_id)
        self._await_words(words, fault, stopped)
        self._strikes.mend(cell.fault, roles)
        return self._settle(cell, roles, words, began_ns), struck

    def _roles(self) -> Roles:
        """The guest moves from where it is."""
        at = self._eyes.running_at()
        if len(at) != 1:
            raise LabError(f"the guest runs at {at or 'no NVE'} before the cell", "see the logs")
        others = [nve.name for nve in self._lab.fabric.of_kind("nve") if nve.name != at[0]]
        return Roles(at[0], others[0], self._lab.daemons.manager)

    @contextmanager
    def _holding(self, roles: Roles, approach: Approach) -> Iterator[Holds]:
        holds = Holds(self._lab, roles)
        if approach.lose is not None:
            holds.lose(approach.lose)
        if approach.freeze is not None:
            self._eyes.hear = holds.freeze_upon(approach.freeze)
        try:
            yield holds
        finally:
            self._eyes.hear = None
            holds.release()

    def _ask(self, roles: Roles, mode: str) -> str:
        body = {"vm": self._vm.name, "vni": 0, "to": roles.destination, "mode": mode}
        daemons = self._lab.daemons
        return str(daemons.ask(daemons.manager, "POST", "/v1/moves", body)["id"])

    def _reach(
        self, approach: Approach, holds: Holds, roles: Roles, move_id: str, since_ns: int
    ) -> None:
        """Until the phase is there; Missed if it is over, or does not come."""
        match approach.until:
            case "qemu":
                there = await_true(lambda: self._eyes.at(roles.destination), REACH_S)
            case "memory":
                there = await_true(lambda: self._copies_memory(roles.source), REACH_S)
            case "event":
                there = await_true(lambda: holds.seen, REACH_S)
            case "runs":
                there = await_true(lambda: self._eyes.runs_at(roles.destination), REACH_S)
            case "rest":
                there = await_true(lambda: self._looks.move(move_id).get("ok"), REACH_S)
                there = there and await_true(lambda: not self._left(roles.destination), REACH_S)
            case (role, event):
                there = self._await_log((roles.node(role), event), since_ns)
        if not there:
            raise Missed("the phase did not come", "see the logs")
        if approach.past and self._logged((roles.manager, approach.past), since_ns):
            raise Missed(f"{approach.past} came before the strike", "try again")
        if approach.until == "event" and self._eyes.runs_at(roles.destination):
            raise Missed("the guest ran at the destination before the strike", "try again")

    def _left(self, serving: str) -> list[str]:
        return self._looks.leftovers(serving, serving)

    def _copies_memory(self, source: str) -> bool:
        found = self._eyes.ask(source, "query-migrate")
        sent = int((found.get("ram") or {}).get("transferred", 0))
        return found.get("status") == "active" and sent > 0

    def _await_log(self, line: tuple[str, str], since_ns: int) -> bool:
        return await_true(lambda: self._logged(line, since_ns), REACH_S)

    def _logged(self, line: tuple[str, str], since_ns: int) -> bool:
        node, name = line
        return any(
            event.ts_ns >= since_ns and (event.node, event.name) == (node, name)
            for event in self._lab.logbook.events()
        )

    def _await_words(self, words: Words, fault: terms.Fault, stopped: bool) -> None:
        """Until the manager has said what there is to say, while the fault lasts."""
        least_s = CUT_LEAST_S if fault.lasts_s is None else fault.lasts_s
        most_s = CUT_MOST_S if fault.name in CUTS else STATED_S
        most_s = most_s if fault.lasts_s is None else fault.lasts_s
        while (passed := words.passed_s) < most_s:
            words.listen()
            if words.told(stopped or bool(self._eyes.heard_at())) and passed >= least_s:
                break
            time.sleep(0.05)

    # -- afterwards ------------------------------------------------------------------------------

    def _settle(self, cell: Cell, roles: Roles, words: Words, began_ns: int) -> Seen:
        """Wait until all is at rest; what is there then."""
        stranger = ""
        if cell.fault == "wrong-image":
            stranger = self._strikes.untouched(roles.destination)
        records: tuple[int, int] | None = None
        if cell.mode in STOPPED_MODES:
            records, problem = self._settle_stopped(words, began_ns)
            stranger = stranger or problem
        at, points = self._wait(words, self._rest.open_running, bool(stranger))
        where = at[0] if at else self._looks.newest()
        self._kept = self._looks.kept(where)
        told = self._eyes.consoles()
        last, lost = self._looks.lost_records(told, where) if where else (acknowledged(told),) * 2
        last, lost = records or (last, lost)
        deaf = self._looks.deaf(ANSWER_S) if len(at) == 1 else ""
        return Seen(
            roles.source, roles.destination, tuple(at), self._eyes.twice_ms(began_ns),
            words.text(), words.told(bool(at)), not deaf, deaf, last, lost,
            tuple(self._looks.leftovers(at[0] if len(at) == 1 else "", where)),
            tuple(self._last_drift), stranger or _words(points),
        )  # fmt: skip

    def _settle_stopped(self, words: Words, began_ns: int) -> tuple[tuple[int, int] | None, str]:
        """Of a VM that is stopped: records (acknowledged, lost) once it is at rest, then it is
        started; and what is wrong with that."""
        where, points = self._wait(words, self._rest.open_stopped)
        if points or self._last_drift:
            return None, _words(points) or f"drift: {'; '.join(self._last_drift)}"
        if ran := self._eyes.ran(began_ns):
            return None, f"a VM that is stopped has run at {', '.join(ran)}"
        records = self._looks.lost_records(self._eyes.consoles(), where)
        problem = self._rest.start(where)
        return records, problem and f"started at {where}, it {problem}"

    def _wait(
        self, words: Words, look: Callable[[str], tuple[At, list[str]]], briefly: bool = False
    ) -> tuple[At, list[str]]:
        """Until nothing is open any more, and the comparison finds nothing."""
        deadline = time.monotonic() + (0.0 if briefly else SETTLE_S)
        while True:
            at, points = look(words.move_id)
            words.listen()
            self._last_drift = []
            if not points:
                self._last_drift = self._looks.drift() if at else []
                self._drift += self._last_drift
            if (not points and not self._last_drift) or time.monotonic() > deadline:
                return at, points
            time.sleep(SETTLE_POLL_S)


def _words(points: list[str]) -> str:
    return "not at rest: " + "; ".join(points) if points else ""
