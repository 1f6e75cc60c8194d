"""From what was seen of a cell to its verdict: pure, no looking.

`judge` knows the invariants: never two at a time, one wherever a complete copy survives, else the
manager says so within the stated time; no acknowledged write lost; nothing left over.
Not here: the expectations (fault_table.py), the looking (fault_looks.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from vmmobility.lab.fault_terms import Outcome, Row

# The end of a lease (8 s in the fabric) and a step of a move (4 s), and some for a busy machine.
STATED_S = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What was looked at, once the fault was mended and all was at rest (or the time was over).

    running_at:  the NVEs with a QEMU whose CPUs run, one entry a QEMU
    twice_ms:    for how long two of them ran at a time since the strike
    said:        how the manager said that it ended, or what it waits for; "" if nothing
    said_s:      how long after the strike, None if never
    answers:     whether the guest answers over both families, its memory whole
    answers_not: what was wrong with that
    acknowledged, lost: records that the guest was told are on its disk, and those that are not
    """

    source: str
    destination: str
    running_at: tuple[str, ...] = ()
    twice_ms: float = 0.0
    said: str = ""
    said_s: float | None = None
    answers: bool = True
    answers_not: str = ""
    acknowledged: int = 0
    lost: int = 0
    leftovers: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()
    unsettled: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """outcome, and why it is not as it should be ("" if it is)."""

    outcome: Outcome
    problem: str

    @property
    def ok(self) -> bool:
        return not self.problem


def judge(seen: Seen, row: Row) -> Verdict:
    """The verdict on one cell that was struck."""
    outcome, problem = _outcome(seen)
    if not problem and outcome not in row.allowed:
        allowed = " or ".join(allowed.value for allowed in row.allowed)
        problem = f"it must come to {allowed}: {row.why}"
    return Verdict(outcome, problem)


def _outcome(seen: Seen) -> tuple[Outcome, str]:
    if len(seen.running_at) > 1 or seen.twice_ms > 0:
        where = ", ".join(seen.running_at) or "two NVEs"
        return Outcome.TWICE, f"it runs twice: at {where}, together for {seen.twice_ms:.1f} ms"
    if seen.lost:
        return Outcome.LOST_WRITES, f"{seen.lost} of {seen.acknowledged} acknowledged writes lost"
    late = seen.said_s is None or seen.said_s > STATED_S
    if not seen.running_at:
        if late:
            when = "" if seen.said_s is None else f" for {seen.said_s:.0f} s"
            return Outcome.NOWHERE, f"it runs nowhere, and the manager does not say so{when}"
        return Outcome.FAILED, _rest(seen)
    where = seen.running_at[0]
    if where not in (seen.source, seen.destination):
        return Outcome.UNSETTLED, f"it runs at {where}, which is no end of the move"
    outcome = Outcome.MOVED if where == seen.destination else Outcome.STAYED
    problem = _rest(seen)
    if not problem and late:
        problem = f"the manager has not said within {STATED_S:.0f} s what has become of the move"
    if not problem and not seen.answers:
        problem = f"the guest does not answer: {seen.answers_not}"
    return (outcome if not problem else Outcome.UNSETTLED), problem


def _rest(seen: Seen) -> str:
    if seen.unsettled:
        return seen.unsettled
    if seen.leftovers:
        return f"left over: {'; '.join(seen.leftovers)}"
    return f"drift: {'; '.join(seen.drift)}" if seen.drift else ""
