"""An NVE's comparison of its list with its hypervisor and its kernel (reconciliation).

It is made at intervals, when the manager asks (CHECK), and when people do.  What the kernel holds
otherwise its driver repairs; a guest that went or came unseen is taken for what the hypervisor says
now.  Not here: how the kernel is read (drivers/linux).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmmobility.engine.binding_update_list import Check, Contest, Entry
from vmmobility.engine.channel import Received
from vmmobility.engine.dataplane import port_name
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.engine.nve_unmanaged import IDLE, NveUnmanaged
from vmmobility.engine.outputs import Audit, CountTraffic, Event, Order
from vmmobility.wire.options import Guest, Measurements, Option, Reason, ServingNve
from vmmobility.wire.registry import GuestLife, GuestState, Phase, Status
from vmmobility.wire.values import VmKey

MOST_SHOWN = 8  # taps, and NVEs, that an answer names: it has 1,024 octets
LIVES = {life.name.lower(): life for life in GuestLife}
RUNS = (GuestLife.RUNNING, GuestLife.ARRIVED)
# Phases in which a guest of this node runs, or may yet run by what the manager has granted.
MAY_RUN = frozenset(Phase) - {Phase.NONE, Phase.REDIRECTING, Phase.DEPARTED}


@dataclass(slots=True)
class Survey:
    """One command of people's that compares several entries."""

    waits_for: set[VmKey]
    checked: int = 0
    drift: list[dict[str, Any]] = field(default_factory=list)


class NveChecks(NveUnmanaged):
    """Comparisons; a part of NveEngine."""

    _surveys: dict[int, Survey]

    def check(self, command: int, vm: VmKey | None, now: float) -> None:
        """Compare one VM, or all, now.  Ends with CommandDone: checked, drift."""
        wanted = [e for e in self.entries.values() if not e.is_tombstone and vm in (None, e.vm)]
        if vm is not None and not wanted:
            self._command_failed(command, f"VM {vm} is not here", "see `vmmob nve list`")
            return
        self._surveys[command] = Survey({e.vm for e in wanted}, len(wanted))
        for entry in wanted:
            self._check(entry).commands.append(command)
        self._survey_done(command)

    def audited(self, vm: VmKey, drift: Sequence[str], now: float) -> None:
        """The answer to Audit(vm): in words what the kernel held otherwise, now repaired."""
        entry = self.entries.get(vm)
        if entry is not None and entry.check is not None:
            entry.check.drift = tuple(drift)
            self._checked(entry, now)

    def _check(self, entry: Entry) -> Check:
        """A comparison that is under way from now on."""
        if entry.check is None:
            entry.check = Check(entry.started)
            self._query(entry)
            self.outbox.emit(Audit(entry.vm))
        return entry.check

    def _query(self, entry: Entry) -> None:
        entry.queries += 1
        self._order(entry, Order.QUERY)

    def _check_requested(self, received: Received, entry: Entry) -> None:
        """CHECK.  With a Guest, another NVE says that it has it: a running guest waits there for
        its packets, so nothing is compared before the answer, and no earlier look is good enough.
        """
        if received.message.find(Guest) is None:
            self._check(entry).requests.append(received)
            self.outbox.emit(CountTraffic(entry.vm, "check"))
        else:
            self._query(entry)
            entry.contests.append(Contest(received, entry.started, entry.queries))

    def _queried(self, entry: Entry, result: Mapping[str, Any], error: str, now: float) -> None:
        # One that does not answer may live.
        life = GuestLife.HELD if error else LIVES[result["life"]]
        entry.queries -= 1
        for contest in entry.contests:
            contest.behind -= 1
        due = [contest for contest in entry.contests if contest.behind <= 0]
        entry.contests = [contest for contest in entry.contests if contest.behind > 0]
        for contest in due:
            self._take_life(entry, contest.started, life, now)
            options = [Guest(self._told_life(entry, life))]
            self._answer(contest.received, entry, Status.ACCEPTED, options)
        if entry.check is not None and entry.check.life is None:
            entry.check.life = life
            self._checked(entry, now)

    def _checked(self, entry: Entry, now: float) -> None:
        check = entry.check
        if check is None or check.life is None or check.drift is None:
            return
        entry.check, answered = None, entry.forgotten
        self._plan_check(entry, now)
        rows = [self._drift(entry, "kernel", "as wanted", words, True) for words in check.drift]
        rows += self._take_life(entry, check.started, check.life, now)
        for command in check.commands:
            survey = self._surveys[command]
            survey.drift += rows
            survey.waits_for.discard(entry.vm)
            self._survey_done(command)
        options: list[Option] = [Guest(self._told_life(entry, check.life))]
        if entry.phase is Phase.REDIRECTING and entry.target is not None:
            options.append(ServingNve(entry.target))
        if check.requests:
            options.append(Measurements(self._shown(entry, check, len(rows))))
        if rows:
            options.append(Reason("; ".join(f"{r['what']}: {r['found']}" for r in rows)))
        for received in check.requests:
            self._answer(received, entry, Status.ACCEPTED, options)
        if entry.phase is Phase.SWITCHED and not answered:
            # Only now, for the answer may want another look.
            self._ask_standing(entry, now)

    def _shown(self, entry: Entry, check: Check, drift: int) -> bytes:
        """What the kernel does for a VM, for people (`vmmob trace`)."""
        state = entry.data_plane(self.settings.policy)
        ports = [port_name(entry.vm, n) for n in range(len(entry.interfaces))]
        found: dict[str, Any] = {"drift": drift, "forwarding": state.forwarding.value}
        if state.target is not None:
            found["target"] = state.target.nve_id
        if state.plugged:
            found["ports"] = ports[:MOST_SHOWN]
        if state.accept_from:
            found["accepts_from"] = [nve.nve_id for nve in state.accept_from][:MOST_SHOWN]
        return json.dumps(found | check.traffic, ensure_ascii=False, separators=(",", ":")).encode()

    @staticmethod
    def _told_life(entry: Entry, life: GuestLife) -> GuestLife:
        """NONE and DEPARTED promise that no guest will run here by what was granted so far."""
        if life in RUNS or entry.phase not in MAY_RUN:
            return life
        ended = (entry.ending and not entry.booting) or entry.phase is Phase.FAILED
        return life if ended and life is GuestLife.NONE else GuestLife.HELD

    def _take_life(
        self, entry: Entry, started: bool, life: GuestLife, now: float
    ) -> list[dict[str, Any]]:
        """What the hypervisor says, where an event of it was missed.  started: whether the guest
        was known to be here when it was asked."""
        runs = life in RUNS
        if entry.phase is Phase.STOPPED or not entry.settled:
            return self._take_held(entry, life, now)
        if entry.ending or (entry.started and not started):
            return []  # its state was changing while it was asked for
        forgotten, entry.forgotten = entry.forgotten, False
        missed: tuple[str, str, Trigger, Any] | None = None
        if entry.phase in (Phase.ATTACHING, Phase.SERVING):
            if life is GuestLife.NONE and entry.started:
                missed = ("here", "gone", Trigger.GONE, None)
            elif life is GuestLife.DEPARTED and entry.expected:
                missed = ("here", "departed", Trigger.DEPARTED, {})
            elif life is GuestLife.HELD and self._should_run(entry):
                # It stops by itself when its disk's host has no more room, for example.
                self._order(entry, Order.RESUME)
                return [self._drift(entry, "guest", "running", "held", True)]
        elif runs and entry.expected and entry.phase in (*IDLE, Phase.DEPARTED):
            detail = {"migrated": life is GuestLife.ARRIVED}
            missed = ("not here", "running", Trigger.ARRIVED, detail)
        elif runs and forgotten and entry.phase is Phase.SWITCHED:
            missed = ("moved away", "running", Trigger.FORGOTTEN, None)
        elif life is GuestLife.NONE and forgotten and entry.phase is Phase.SWITCHED:
            missed = ("moved away", "gone, and nobody serves it", Trigger.DRAIN_ACCEPTED, None)
        elif runs and entry.phase is Phase.REDIRECTING:
            self._order(entry, Order.PAUSE)
            return [self._drift(entry, "guest", "not running", "running", True)]
        if missed is None:
            return []
        expected, found, trigger, cause = missed
        row = self._drift(entry, "guest", expected, found, True)
        self._fire(entry, trigger, cause, now)
        return [row]

    def _should_run(self, entry: Entry) -> bool:
        """Whether a guest of ours serves here, at rest, and nobody wants it stopped.  A protected
        one stops for checkpoints, for good as it is handed over, or by its lease's end."""
        kept = entry.paused or entry.rolling_back or entry.booting or entry.expected
        kept = kept or entry.fenced or entry.vm in self.guarded
        at_rest = entry.phase is Phase.SERVING and entry.started and not entry.ticket
        return at_rest and not kept and entry.wanted is GuestState.RUNNING

    def _take_held(self, entry: Entry, life: GuestLife, now: float) -> list[dict[str, Any]]:
        """Of a guest that is not to run: hands let it go on, or it is gone."""
        wanted = entry.wanted.name.lower()
        if entry.ending or not entry.settled:
            return []
        if life is GuestLife.NONE and entry.guest is GuestState.SUSPENDED:
            row = self._drift(entry, "guest", wanted, "gone", True)
            self._fire(entry, Trigger.GONE, None, now)
            return [row]
        if life in RUNS or (life is GuestLife.HELD and entry.guest is GuestState.STOPPED):
            self._pursue(entry, entry.wanted)
            self._save(entry)
            return [self._drift(entry, "guest", wanted, life.name.lower(), True)]
        return []

    def _survey_done(self, command: int) -> None:
        survey = self._surveys[command]
        if not survey.waits_for:
            del self._surveys[command]
            self._command_done(command, {"checked": survey.checked, "drift": survey.drift})

    def _drift(
        self, entry: Entry, what: str, expected: str, found: str, repaired: bool
    ) -> dict[str, Any]:
        """A difference, counted and told; the row that people see."""
        self.counts[f"drift.{what}"] += 1
        row = {
            "vm": entry.vm.vm_id,
            "vni": entry.vm.vni,
            "nve": self.settings.own.nve_id,
            "what": what,
            "expected": expected,
            "found": found,
            "repaired": repaired,
        }
        self.outbox.emit(Event("drift", dict(row)))
        return row

    # ---- time ----------------------------------------------------------------------------------

    def _plan_check(self, entry: Entry, now: float) -> None:
        entry.check_at = now + self.settings.check_s * self.jitter.uniform(0.8, 1.0)

    def _check_timer(self, entry: Entry, now: float) -> None:
        if entry.is_tombstone:
            entry.check_at = None
            return
        self._plan_check(entry, now)
        self._check(entry)
        in_a_move = (Phase.PREPARED, Phase.CONVERGED, Phase.DELIVERING, Phase.FAILED)
        if entry.phase in in_a_move and not self._takes_over(entry):
            self._ask_for_move(entry, now)
        if entry.phase in (Phase.REDIRECTING, Phase.DEPARTED):
            self._ask_standing(entry, now)
        if entry.phase in (Phase.REDIRECTING, Phase.DEPARTED):
            self._look_at_age(entry, now)

    def _look_at_age(self, entry: Entry, now: float) -> None:
        """design, invariant 8: an entry that does not drain lives on, "with an alarm at a
        limit"."""
        if entry.redirecting_since is None:
            entry.redirecting_since = now
        age_s = now - entry.redirecting_since
        if age_s >= self.settings.redirect_alarm_s and not entry.alarmed:
            entry.alarmed = True
            self._event("redirect.old", entry, age_s=round(age_s))
