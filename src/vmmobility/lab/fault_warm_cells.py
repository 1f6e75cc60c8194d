"""Warm cells: a VM is protected, its primary or its standby is struck, and what comes of it.

What must survive is what the guest was told when the last complete checkpoint stopped it.  Not
here: moves (fault_moves.py), what is at rest (fault_rest.py), the verdict (fault_judging.py).
"""

from __future__ import annotations

import time
from typing import Any

from vmmobility.errors import ApiError
from vmmobility.lab import fault_terms as terms
from vmmobility.lab.fault_cells import REACH_S, Missed, Player, Words
from vmmobility.lab.fault_eyes import Eye
from vmmobility.lab.fault_holds import DESTINATION, MANAGER, SOURCE, Holds, Roles, await_true
from vmmobility.lab.fault_table import Cell
from vmmobility.lab.guest.disk_records import acknowledged
from vmmobility.wire.registry import Purpose

LEASE_S = 6  # longer than a daemon takes to be back on a busy machine
OFTEN_S, SELDOM_S = 1, 600
PLANNED = (terms.LAST_CHECKPOINT, terms.HANDED_OVER, terms.RESTING)
TO_STANDBY = (MANAGER, DESTINATION, Purpose.PROTECT)
_UNSURE_S = 12.0  # an alarm alone is no word on a VM that a standby may still take over


class WarmWords(Words):
    """What the manager says of a protected VM: where it serves, or that its standby has failed."""

    def __init__(self, player: WarmPlayer, roles: Roles) -> None:
        super().__init__(player.looks, "")
        self._player = player
        self._roles = roles

    def listen(self) -> None:
        """Hear what it says now."""
        row, protected = self._player.rest.binding(), self._player.protection()
        at, state = str(row.get("nve", "")), str(protected.get("state", ""))
        failed = state == "failed" or self._looks.is_removed()
        loss = f"protection {state or 'ended'}: {protected.get('reason', '')}" if failed else ""
        if not loss and self.passed_s > _UNSURE_S:
            loss = "; ".join(self._looks.alarms())
        serves = row.get("state") == "serving" and self._player.eyes.runs_at(at)
        settled = at == self._roles.destination or state in ("", "active", "preparing", "arming")
        self.note(f"serving at {at}" if serves and settled else "", loss)

    def told(self, runs: bool) -> float | None:
        """Where it serves may have to be said anew: the last counts."""
        return max(self._said.values(), default=None) if runs else super().told(runs)


class WarmPlayer(Player):
    """Plays warm cells."""

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self._stops: list[tuple[int, int]] = []  # (ns, the last record acknowledged by then)
        self._ended_s = 0.0  # when it was last asked to be protected no more

    # -- what people ask -------------------------------------------------------------------------

    def protection(self) -> dict[str, Any]:
        """The VM's, as the manager has it; {} if it has none, or does not answer."""
        daemons = self.lab.daemons
        try:
            rows = daemons.ask(daemons.manager, "GET", "/v1/protected", timeout_s=2.0)
        except ApiError:
            return {}
        return next((row for row in rows if row["vm"] == self.vm.name), {})

    def _command(self, method: str, body: Any = None) -> None:
        daemons = self.lab.daemons
        daemons.ask(daemons.manager, method, f"/v1/vms/{self.vm.name}/protection", body)

    def _protect(self, cell: Cell, roles: Roles) -> None:
        every_s = OFTEN_S if cell.phase == terms.CHECKPOINTING else SELDOM_S
        body = {"to": roles.destination, "every_s": every_s, "fail_over": True}
        self._command("POST", body | {"lease_s": LEASE_S})

    def _hand_over(self, roles: Roles) -> None:
        body = {"vm": self.vm.name, "vni": 0, "to": roles.destination, "mode": "warm"}
        daemons = self.lab.daemons
        daemons.ask(daemons.manager, "POST", "/v1/moves", body)

    # -- a cell's parts, as the player asks for them ---------------------------------------------

    def begin(self, cell: Cell, roles: Roles, holds: Holds) -> Words:
        """Have it protected; what the manager says of it."""
        self._stops = []
        self._hear(holds, roles, freeze=False)
        self._protect(cell, roles)
        return WarmWords(self, roles)

    def reach(self, cell: Cell, roles: Roles, holds: Holds, words: Words, since_ns: int) -> None:
        """Until the phase is there; Missed if it is over, or does not come."""
        source = roles.source
        if cell.phase == terms.FIRST_COPY:
            self._await("a first checkpoint", lambda: self._stops and self.eyes.runs_at(source))
            if self.protection().get("checkpoint"):
                raise Missed("the first checkpoint was complete before the strike", "try again")
            return
        self._await("a complete checkpoint", self._is_protected)
        if cell.phase == terms.CHECKPOINTING:
            before = len(self._stops)
            self._await("another checkpoint", lambda: len(self._stops) > before)
            return
        self._await("rest", lambda: not self.copies_memory(source))
        match cell.phase:
            case terms.FAILING_OVER:
                holds.lose(TO_STANDBY)
                self.lab.hosts.power_off(source)
                self._await_event((roles.manager, "protection.taking-over"), since_ns)
            case terms.LAST_CHECKPOINT:
                self._hear(holds, roles, freeze=True)
                self._hand_over(roles)
                self._await("the guest's stop", lambda: holds.seen)
            case terms.HANDED_OVER:
                holds.lose(TO_STANDBY)
                self._hand_over(roles)
                self._await_event((roles.manager, "protection.taking-over"), since_ns)
            case terms.RESTING:
                self._hand_over(roles)
                there = roles.destination
                self._await("the VM's life there", lambda: self.eyes.runs_at(there))
                self._await("rest", lambda: not self._open(roles))

    def mend(self, cell: Cell, roles: Roles) -> None:
        """The fault, and what was done before it."""
        super().mend(cell, roles)
        if cell.phase == terms.FAILING_OVER:
            self.strikes.mend("source-killed", roles)

    def lasts_s(self, fault: terms.Fault) -> tuple[float, float]:
        """The least and the most: a primary is cut off for longer than its lease."""
        least_s, most_s = super().lasts_s(fault)
        return (LEASE_S + 4 if fault.name == "source-link-cut" else least_s), most_s

    def wait(
        self, cell: Cell, roles: Roles, words: Words, began_ns: int
    ) -> tuple[list[str], list[str], str]:
        """Until all is at rest, and nobody is protected; where it runs, and what is open."""
        self._ended_s = 0.0
        at, points = self.settle_by(words, lambda: (self.eyes.running_at(), self._open(roles)))
        return at, points, ""

    def records(self, cell: Cell, roles: Roles, where: str) -> tuple[int, int]:
        """What the guest had been told by the moment of the last complete checkpoint; where it has
        not come to its standby, all."""
        most = self._promised(roles) if where == roles.destination else None
        return self.looks.lost_records(self.eyes.consoles(), where, most)

    def let_go(self) -> None:
        """It is protected no more."""
        self._ended_s = 0.0
        await_true(lambda: not self._ending(), REACH_S)

    # -- inside ----------------------------------------------------------------------------------

    def _hear(self, holds: Holds, roles: Roles, *, freeze: bool) -> None:
        hang = holds.freeze_upon((SOURCE, "STOP", SOURCE)) if freeze else None

        def hear(eye: Eye, name: str) -> None:
            if hang is not None:
                hang(eye, name)
            if eye.node == roles.source and name == "STOP":
                self._stops.append((time.time_ns(), acknowledged(self.eyes.consoles())))

        self.eyes.hear = hear

    def _promised(self, roles: Roles) -> int:
        """What the guest had been told when the last checkpoint that is complete stopped it."""
        held = [
            event.ts_ns
            for event in self.lab.logbook.events()
            if (event.node, event.name) == (roles.destination, "guest.checkpoint-held")
        ]
        before = [told for at_ns, told in self._stops if held and at_ns < held[-1]]
        return before[-1] if before else 0

    def _is_protected(self) -> bool:
        row = self.protection()
        return row.get("state") == "active" and int(row.get("checkpoint", 0)) > 0

    def _open(self, roles: Roles) -> list[str]:
        """What is not at rest yet; a protection that is left is ended, as people would."""
        if state := self._ending():
            return [f"its protection is {state}"]
        newest = self.looks.newest()
        if not self.eyes.running_at() and newest:  # what the other has is older
            self._put_aside(next(n for n in (roles.source, roles.destination) if n != newest))
        if self.eyes.running_at() == [roles.destination]:
            self._put_aside(roles.source)
        return self.rest.open_running("")[1]

    def _ending(self) -> str:
        """How its protection stands, "" if it has none; it is told to end, where it can be."""
        state = str(self.protection().get("state", ""))
        fixed = state in ("", "taking-over", "handing", "ending")
        if not fixed and time.monotonic() > self._ended_s + 2.0:
            self._ended_s = time.monotonic()
            self._end()
        return state

    def _end(self) -> None:
        try:
            self._command("DELETE")
        except ApiError as error:
            if "protected" not in error.message and "taking over" not in error.message:
                raise

    def _put_aside(self, node: str) -> None:
        """What an operator does: the image of a primary that was overtaken is looked at, and
        removed; nobody else may, for it has the newest writes."""
        image = self.looks.image(node)
        if image.exists() and not self.eyes.at(node):
            self.kept.append(f"{node}: {image.name}")
            for path in image.parent.glob(f"{image.name}*"):
                path.unlink()

    def _await(self, what: str, look: Any) -> None:
        if not await_true(look, REACH_S):
            raise Missed(f"{what} did not come", f"see the logs: {self.protection()}")

    def _await_event(self, line: tuple[str, str], since_ns: int) -> None:
        if not self.await_log(line, since_ns):
            raise Missed(f"{line[1]} did not come", "see the logs")
