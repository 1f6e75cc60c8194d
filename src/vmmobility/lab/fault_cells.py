"""One cell of the matrix played: a move, a fault in one of its phases, what comes of it, and back.

Not here: which cells (fault_table.py), how phases are held (fault_holds.py), faults
(fault_strikes.py), looking (fault_looks.py, fault_eyes.py), the verdict (fault_judging.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vmmobility.errors import ApiError, LabError
from vmmobility.lab import fault_table as table
from vmmobility.lab.disk_fresh import bring, fresh_disk, wipe_records
from vmmobility.lab.fault_eyes import Eyes
from vmmobility.lab.fault_holds import APPROACHES, Approach, Holds, Roles, await_true
from vmmobility.lab.fault_judging import STATED_S, Seen, Verdict, judge
from vmmobility.lab.fault_looks import EVERY_MS, RECORDS, Looks
from vmmobility.lab.fault_strikes import Strikes
from vmmobility.lab.fault_table import FAULTS, Cell, Outcome
from vmmobility.lab.guest.disk_records import acknowledged
from vmmobility.lab.laboratory import VM_START_S, Laboratory

TRIES = 3
REACH_S, SETTLE_S, SETTLE_POLL_S = 30.0, 45.0, 0.25
UNSETTLED_S = 5.0  # patience with a lab in which a cell went wrong
ANSWER_S = 10.0
CUT_LEAST_S = 3.0  # a fault that ends with the manager's word lasts at least so long
# These strike before the move is asked for: what they break is looked at when it begins.
BEFORE = ("disk-full", "out-of-memory", "wrong-image")
_FRESH = 0.7  # of the records written once: for a disk that must have room for others, begin anew


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
        self._vm = lab.fabric.vms[0]
        self._drift: list[str] = []
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
                    self.come_to_rest()
                    continue
            played.tries, played.drift_repaired, played.kept = tries, self._drift, self._kept
            played.seconds = time.monotonic() - begun
            try:
                self.come_to_rest(SETTLE_S if played.verdict.ok else UNSETTLED_S)
            except LabError as error:
                self.spoilt = error.message
            return played

    # -- one try ---------------------------------------------------------------------------------

    def _once(self, cell: Cell) -> tuple[Seen, str]:
        self._drift = []
        if cell.fault == "disk-full":
            self._have_room_for_records()
        roles, fault = self._roles(), FAULTS[cell.fault]
        approach = APPROACHES[cell.mode, cell.phase]
        early = cell.fault in BEFORE and cell.phase == table.PREPARING
        began_ns = time.time_ns()
        struck = ""
        with self._holding(roles, approach) as holds:
            if early:
                struck = self._strikes.strike(cell.fault, roles, before=True)
            move_id = self._ask(roles)
            if not early:
                self._reach(approach, holds, roles, move_id, began_ns)
                struck = self._strikes.strike(cell.fault, roles, before=False)
            words = Words(self._looks, move_id)
        self._await_words(words, fault)
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

    def _ask(self, roles: Roles) -> str:
        body = {"vm": self._vm.name, "vni": 0, "to": roles.destination}
        daemons = self._lab.daemons
        return str(daemons.ask(daemons.manager, "POST", "/v1/moves", body)["id"])

    def _reach(
        self, approach: Approach, holds: Holds, roles: Roles, move_id: str, since_ns: int
    ) -> None:
        """Until the phase is there; Missed if it is over, or does not come."""
        if approach.lose_later is not None:
            self._await_log((roles.manager, "move.copying"), since_ns)
            holds.lose(approach.lose_later)
        match approach.until:
            case "qemu":
                there = await_true(lambda: self._eyes.at(roles.destination), REACH_S)
            case "memory":
                there = await_true(lambda: self._copies_memory(roles.source), REACH_S)
            case "event":
                there = await_true(lambda: holds.seen, REACH_S)
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

    def _await_words(self, words: Words, fault: table.Fault) -> None:
        """Until the manager has said what there is to say, while the fault lasts."""
        least_s = CUT_LEAST_S if fault.lasts_s is None else fault.lasts_s
        most_s = STATED_S if fault.lasts_s is None else fault.lasts_s
        while (passed := words.passed_s) < most_s:
            words.listen()
            if words.told(bool(self._eyes.heard_at())) and passed >= least_s:
                break
            time.sleep(0.05)

    # -- afterwards ------------------------------------------------------------------------------

    def _settle(self, cell: Cell, roles: Roles, words: Words, began_ns: int) -> Seen:
        """Wait until all is at rest; what is there then."""
        stranger = ""
        if cell.fault == "wrong-image":
            stranger = self._strikes.untouched(roles.destination)
        deadline = time.monotonic() + SETTLE_S
        drift: list[str] = []
        while True:
            at, open_points = self._open(words.move_id)
            words.listen()
            if not open_points:
                drift = self._looks.drift() if at else []
                self._drift += drift
            if (not open_points and not drift) or time.monotonic() > deadline:
                break
            time.sleep(SETTLE_POLL_S)
        holder = at[0] if at else self._looks.newest()
        self._kept = self._looks.kept(holder)
        told = self._eyes.consoles()
        last, lost = self._looks.lost_records(told, holder) if holder else (acknowledged(told), 0)
        deaf = self._looks.deaf(ANSWER_S) if len(at) == 1 else ""
        return Seen(
            roles.source, roles.destination, tuple(at), self._eyes.twice_ms(began_ns),
            words.text(), words.told(bool(at)), not deaf, deaf,
            last, lost if holder else last,
            tuple(self._looks.leftovers(at[0] if len(at) == 1 else "", holder)),
            tuple(drift), stranger or _words(open_points),
        )  # fmt: skip

    def _open(self, move_id: str) -> tuple[list[str], list[str]]:
        """Where it runs, and what is not at rest yet."""
        at, points = self._eyes.running_at(), []
        move = self._looks.move(move_id)
        if move.get("ok") is None:
            points.append(f"the move is {move.get('state') or 'not known to the manager'}")
        if len(at) == 1:
            points += [] if self._bound_to(at[0]) else [f"the VM is not bound to {at[0]}"]
            points += self._looks.leftovers(at[0], at[0])
        elif not at:
            told = self._looks.alarms() or self._looks.is_removed()
            points += [] if told else ["nobody says that the VM runs nowhere"]
            points += self._looks.leftovers("", self._looks.newest())
        return at, points

    def _bound_to(self, node: str) -> bool:
        daemons = self._lab.daemons
        try:
            target = f"/v1/bindings/{self._vm.name}?vni=0"
            found = daemons.ask(daemons.manager, "GET", target, timeout_s=2.0)
        except ApiError:
            return False
        row = found[0] if isinstance(found, list) and found else found
        return (row.get("nve"), row.get("state")) == (node, "serving")

    # -- between cells ---------------------------------------------------------------------------

    def come_to_rest(self, within_s: float = SETTLE_S) -> None:
        """One guest runs, and the fabric is at rest: what a cell begins with.  LabError if not."""
        last: list[str] = []

        def rests() -> bool:
            nonlocal last
            at = self._eyes.running_at()
            last = [] if len(at) == 1 else [f"it runs at {at or 'no NVE'}"]
            if len(at) == 1:
                last += [] if self._bound_to(at[0]) else [f"it is not bound to {at[0]}"]
                last += self._looks.leftovers(at[0], at[0])
            return not last

        at = self._eyes.running_at()
        if not at:
            await_true(self._eyes.running_at, 3.0)  # one that has just been let go on
            if not self._eyes.running_at():
                self.revive()
        if not await_true(rests, within_s):
            raise LabError("it does not come to rest: " + "; ".join(last), "see the logs")

    def revive(self, anew: bool = False) -> None:
        """Start the lost VM where its newest image is.  anew: at home, with a new image."""
        lab, vm = self._lab, self._vm
        node = "" if anew else self._looks.newest()
        if node:
            wipe_records(self._looks.image(node), RECORDS)
            if node != vm.home:  # nobody leads to where a VM that is not registered may start
                bring(self._looks.image(node), self._looks.image(vm.home))
                node = vm.home
        else:
            node = vm.home
            for nve in lab.fabric.of_kind("nve"):
                for path in self._looks.image(nve.name).parent.glob(f"{vm.name}.img*"):
                    path.unlink()
            fresh_disk(self._looks.image(node), vm.disk_mib, RECORDS)
        self._eyes.forget_consoles()
        lab.daemons.ask(node, "PUT", f"/v1/vms/{vm.name}", definition(lab), VM_START_S)
        if deaf := self._looks.deaf(VM_START_S):
            raise LabError(f"{vm.name}, started at {node}, does not answer: {deaf}", "see its log")
        if not await_true(lambda: acknowledged(self._eyes.consoles()) > 0, VM_START_S):
            raise LabError(f"{vm.name}, started at {node}, writes nothing", "see its console")

    def _have_room_for_records(self) -> None:
        """Records go to places that hold none yet, or a full disk would not be felt."""
        if acknowledged(self._eyes.consoles()) > _FRESH * RECORDS:
            at = self._eyes.running_at()[0]
            self._lab.daemons.ask(at, "DELETE", f"/v1/vms/{self._vm.name}?vni=0", timeout_s=30.0)
            if not await_true(lambda: not self._eyes.running_at(), SETTLE_S):
                raise LabError("the VM does not stop", "see its NVE's log")
            self.revive(anew=True)
            self.come_to_rest()


def definition(lab: Laboratory) -> dict[str, Any]:
    """The VM with its own number and pace of records."""
    vm = lab.fabric.vms[0]
    body = lab.definition(vm)
    words = [word for word in body["machine"]["append"].split() if not word.startswith("disk_")]
    records = f"disk_records={RECORDS} disk_every_ms={EVERY_MS}"
    return {**body, "machine": {**body["machine"], "append": " ".join([*words, records])}}


def _words(points: list[str]) -> str:
    return "not at rest: " + "; ".join(points) if points else ""
