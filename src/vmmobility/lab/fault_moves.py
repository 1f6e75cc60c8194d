"""Cells of moves, hot and cold: how each phase is reached, and what is waited for.

A VM that is stopped is started once all is at rest: where it runs then is where it is.  Not here:
what is common to all cells (fault_cells.py), warm standbys (fault_warm_cells.py).
"""

from __future__ import annotations

from vmmobility.lab.fault_cells import REACH_S, Missed, Player, Words, open_words
from vmmobility.lab.fault_holds import APPROACHES, Holds, Roles, await_true
from vmmobility.lab.fault_table import Cell

STOPPED_MODES = ("cold-stopped",)
MODES_ASKED = {"hot": "hot", "cold-suspended": "cold", "cold-stopped": "cold"}


class MoveWords(Words):
    """What the manager says of a move."""

    def listen(self) -> None:
        """Hear what it says now."""
        self.note(self._looks.ended(self.move_id), self._looks.loss(self.move_id))


class MovePlayer(Player):
    """Plays cells of moves."""

    _stopped_records: tuple[int, int] | None = None

    def stands_still(self, cell: Cell) -> bool:
        """Whether the VM is not to run meanwhile."""
        return cell.mode in STOPPED_MODES

    def begin(self, cell: Cell, roles: Roles, holds: Holds) -> Words:
        """Ask for the move."""
        self._stopped_records = None
        approach = APPROACHES[cell.mode, cell.phase]
        if approach.lose is not None:
            holds.lose(approach.lose)
        if approach.freeze is not None:
            self.eyes.hear = holds.freeze_upon(approach.freeze)
        body = {"vm": self.vm.name, "vni": 0, "to": roles.destination}
        body |= {"mode": MODES_ASKED[cell.mode]}
        daemons = self.lab.daemons
        move = daemons.ask(daemons.manager, "POST", "/v1/moves", body)
        return MoveWords(self.looks, str(move["id"]))

    def reach(self, cell: Cell, roles: Roles, holds: Holds, words: Words, since_ns: int) -> None:
        """Until the phase is there; Missed if it is over, or does not come."""
        approach, there = APPROACHES[cell.mode, cell.phase], roles.destination
        match approach.until:
            case "qemu":
                come = await_true(lambda: self.eyes.at(there), REACH_S)
            case "memory":
                come = await_true(lambda: self.copies_memory(roles.source), REACH_S)
            case "event":
                come = await_true(lambda: holds.seen, REACH_S)
            case "runs":
                come = await_true(lambda: self.eyes.runs_at(there), REACH_S)
            case "rest":
                come = await_true(lambda: self.looks.move(words.move_id).get("ok"), REACH_S)
                come = come and await_true(lambda: not self.looks.leftovers(there, there), REACH_S)
            case (role, event):
                come = self.await_log((roles.node(role), event), since_ns)
        if not come:
            raise Missed("the phase did not come", "see the logs")
        if approach.past and self.logged((roles.manager, approach.past), since_ns):
            raise Missed(f"{approach.past} came before the strike", "try again")
        if approach.until == "event" and self.eyes.runs_at(there):
            raise Missed("the guest ran at the destination before the strike", "try again")

    def wait(
        self, cell: Cell, roles: Roles, words: Words, began_ns: int
    ) -> tuple[list[str], list[str], str]:
        """Until all is at rest: where it runs, what is open, and what else went wrong."""
        problem = self._start(words, began_ns) if self.stands_still(cell) else ""
        if problem:
            return self.eyes.running_at(), [], problem
        at, points = self.settle_by(words, lambda: self.rest.open_running(words.move_id))
        return at, points, ""

    def records(self, cell: Cell, roles: Roles, where: str) -> tuple[int, int]:
        """All that the guest was told; of one that was stopped, as they were before its start."""
        return self._stopped_records or self.looks.lost_records(self.eyes.consoles(), where)

    def _start(self, words: Words, began_ns: int) -> str:
        """Once the stopped VM is at rest: its records are looked at, and it is started.  What went
        wrong with that."""
        where, points = self.settle_by(words, lambda: self.rest.open_stopped(words.move_id))
        if points or self.last_drift:
            return open_words(points) or f"drift: {'; '.join(self.last_drift)}"
        if ran := self.eyes.ran(began_ns):
            return f"a VM that is stopped has run at {', '.join(ran)}"
        self._stopped_records = self.looks.lost_records(self.eyes.consoles(), where)
        problem = self.rest.start(where)
        return f"started at {where}, it {problem}" if problem else ""
