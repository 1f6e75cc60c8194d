"""A move at the manager as a table: what each happening does to a move in each state.

A cold move of a VM that runs begins with SUSPENDING.  Forward, a move goes PREPARING, COPYING,
ANNOUNCING, WITHDRAWING, DELIVERING, SWITCHING,
REDIRECTING, DONE; where no router takes part ANNOUNCING and WITHDRAWING are passed over.  The
destination relays before any router leads there: else it would send back to its router what the
fabric brings early.

Backward, it goes ENDING_GUEST (the destination's waiting guest is ended for certain), TURNING_BACK
(the source serves again under a fresh epoch), CLEARING (the destination forgets), ABORTED.

Between two servers of one NVE there is one step, RELOCATING; giving it up is STAYING.

Total: a pair that no rule names is ignored.  Not here: the actions (manager_moves.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class MoveState(Enum):
    """Where a move stands; durable before the next request leaves."""

    SUSPENDING = "suspending"
    PREPARING = "preparing"
    COPYING = "copying"
    DELIVERING = "delivering"
    ANNOUNCING = "announcing"
    WITHDRAWING = "withdrawing"
    SWITCHING = "switching"
    REDIRECTING = "redirecting"
    RELOCATING = "relocating"
    STAYING = "staying"
    DONE = "done"
    ENDING_GUEST = "ending-guest"
    TURNING_BACK = "turning-back"
    CLEARING = "clearing"
    ABORTED = "aborted"
    FAILED = "failed"


FINAL = frozenset({MoveState.DONE, MoveState.ABORTED, MoveState.FAILED})


class Happening(Enum):
    """Everything that can happen to a move."""

    ACCEPTED = "the step's request was accepted"
    REFUSED = "the step's request was refused"
    CONVERGED = "the source's copy has converged"
    ROUTED = "the fabric leads to the destination"
    UNROUTED = "a router refused"
    SOURCE_FAILED = "the source's side failed"
    DESTINATION_FAILED = "the destination's side failed"
    ATTACHED = "the destination's attach was accepted"
    RELOCATED = "it runs at the other server"
    ACKNOWLEDGED = "every previous NVE redirects"
    TIMEOUT = "the state's time is over"
    VOIDED = "another attach was accepted"
    ABORT = "an operator gives it up"


@dataclass(frozen=True, slots=True)
class Step:
    """What a happening leads to: the next state, and why (for people) if it is a turn back."""

    becomes: MoveState
    because: str = ""


_S, _H = MoveState, Happening

TABLE: dict[tuple[MoveState, Happening], Step] = {
    # a cold move of a VM that runs: until then nobody but the source has done anything
    (_S.SUSPENDING, _H.ACCEPTED): Step(_S.PREPARING),
    (_S.SUSPENDING, _H.REFUSED): Step(_S.ABORTED, "the guest was not suspended"),
    (_S.SUSPENDING, _H.TIMEOUT): Step(_S.ABORTED, "the source does not answer"),
    (_S.SUSPENDING, _H.ABORT): Step(_S.ABORTED, "given up"),
    (_S.SUSPENDING, _H.VOIDED): Step(_S.ABORTED, "another attach was accepted"),
    # to another server of the same NVE, which alone knows how far it is: without its word nothing
    # follows
    (_S.RELOCATING, _H.RELOCATED): Step(_S.DONE),
    (_S.RELOCATING, _H.ACCEPTED): Step(_S.ABORTED, "it stays where it was"),
    (_S.RELOCATING, _H.REFUSED): Step(_S.ABORTED, "it stays where it was"),
    (_S.RELOCATING, _H.ABORT): Step(_S.STAYING, "given up"),
    (_S.RELOCATING, _H.VOIDED): Step(_S.ABORTED, "another attach was accepted"),
    (_S.STAYING, _H.RELOCATED): Step(_S.DONE),
    (_S.STAYING, _H.ACCEPTED): Step(_S.ABORTED),
    (_S.STAYING, _H.REFUSED): Step(_S.ABORTED),
    (_S.STAYING, _H.VOIDED): Step(_S.ABORTED, "another attach was accepted"),
    # forward
    (_S.PREPARING, _H.ACCEPTED): Step(_S.COPYING),
    (_S.COPYING, _H.CONVERGED): Step(_S.ANNOUNCING),
    (_S.ANNOUNCING, _H.ROUTED): Step(_S.WITHDRAWING),
    (_S.WITHDRAWING, _H.ROUTED): Step(_S.DELIVERING),
    (_S.DELIVERING, _H.ACCEPTED): Step(_S.SWITCHING),
    (_S.SWITCHING, _H.ATTACHED): Step(_S.REDIRECTING),
    (_S.REDIRECTING, _H.ACKNOWLEDGED): Step(_S.DONE),
    (_S.REDIRECTING, _H.TIMEOUT): Step(_S.DONE, "a previous NVE has not yet answered"),
    # a guest that attached runs at the destination, whatever else was on its way
    (_S.DELIVERING, _H.ATTACHED): Step(_S.REDIRECTING),
    (_S.ANNOUNCING, _H.ATTACHED): Step(_S.REDIRECTING),
    (_S.WITHDRAWING, _H.ATTACHED): Step(_S.REDIRECTING),
    (_S.ENDING_GUEST, _H.ATTACHED): Step(_S.REDIRECTING),
    # before the copy: only the destination has done anything
    (_S.PREPARING, _H.REFUSED): Step(_S.CLEARING, "the destination refused"),
    (_S.PREPARING, _H.TIMEOUT): Step(_S.CLEARING, "the destination does not answer"),
    (_S.PREPARING, _H.DESTINATION_FAILED): Step(_S.CLEARING, "the destination failed"),
    (_S.PREPARING, _H.ABORT): Step(_S.CLEARING, "given up"),
    # while copying: the source still serves, so it is first told to go on
    (_S.COPYING, _H.REFUSED): Step(_S.TURNING_BACK, "the source refused"),
    (_S.COPYING, _H.TIMEOUT): Step(_S.TURNING_BACK, "the copy does not end"),
    (_S.COPYING, _H.SOURCE_FAILED): Step(_S.TURNING_BACK, "the source failed"),
    (_S.COPYING, _H.DESTINATION_FAILED): Step(_S.TURNING_BACK, "the destination failed"),
    (_S.COPYING, _H.ABORT): Step(_S.TURNING_BACK, "given up"),
    # while the fabric is turned: the source still serves, and its routers turn back with it
    **{
        (state, happening): Step(_S.TURNING_BACK, because)
        for state in (_S.ANNOUNCING, _S.WITHDRAWING)
        for happening, because in (
            (_H.TIMEOUT, "the fabric does not lead to the destination"),
            (_H.UNROUTED, "a router refused"),
            (_H.REFUSED, "the destination refused"),
            (_H.SOURCE_FAILED, "the source failed"),
            (_H.DESTINATION_FAILED, "the destination failed"),
            (_H.ABORT, "given up"),
        )
    },
    (_S.DELIVERING, _H.REFUSED): Step(_S.TURNING_BACK, "the destination refused"),
    (_S.DELIVERING, _H.TIMEOUT): Step(_S.TURNING_BACK, "the destination does not answer"),
    (_S.DELIVERING, _H.SOURCE_FAILED): Step(_S.TURNING_BACK, "the source failed"),
    (_S.DELIVERING, _H.DESTINATION_FAILED): Step(_S.TURNING_BACK, "the destination failed"),
    (_S.DELIVERING, _H.ABORT): Step(_S.TURNING_BACK, "given up"),
    # in the switch the destination's guest may run already: it is ended for certain first, also if
    # the destination has failed - before it was prepared anew, perhaps, and that came late
    (_S.SWITCHING, _H.REFUSED): Step(_S.ENDING_GUEST, "the source refused"),
    (_S.SWITCHING, _H.TIMEOUT): Step(_S.ENDING_GUEST, "the switch does not end"),
    (_S.SWITCHING, _H.SOURCE_FAILED): Step(_S.ENDING_GUEST, "the source failed"),
    (_S.SWITCHING, _H.DESTINATION_FAILED): Step(_S.ENDING_GUEST, "the destination failed"),
    (_S.SWITCHING, _H.ABORT): Step(_S.ENDING_GUEST, "given up"),
    (_S.ENDING_GUEST, _H.ACCEPTED): Step(_S.TURNING_BACK),
    # refused because the guest runs there: go on, its attach will come
    (_S.ENDING_GUEST, _H.REFUSED): Step(_S.SWITCHING),
    (_S.TURNING_BACK, _H.ACCEPTED): Step(_S.CLEARING),
    (_S.TURNING_BACK, _H.REFUSED): Step(_S.FAILED, "the source could not serve again"),
    (_S.CLEARING, _H.ACCEPTED): Step(_S.ABORTED),
    (_S.CLEARING, _H.REFUSED): Step(_S.ABORTED, "the destination could not be cleared"),
    (_S.CLEARING, _H.TIMEOUT): Step(_S.ABORTED, "the destination does not answer"),
    # a newer attach settles where the VM is
    (_S.PREPARING, _H.VOIDED): Step(_S.CLEARING, "another attach was accepted"),
    (_S.COPYING, _H.VOIDED): Step(_S.CLEARING, "another attach was accepted"),
    (_S.ANNOUNCING, _H.VOIDED): Step(_S.CLEARING, "another attach was accepted"),
    (_S.DELIVERING, _H.VOIDED): Step(_S.CLEARING, "another attach was accepted"),
    (_S.WITHDRAWING, _H.VOIDED): Step(_S.CLEARING, "another attach was accepted"),
    (_S.SWITCHING, _H.VOIDED): Step(_S.ENDING_GUEST, "the VM was deregistered"),
}


def picture() -> str:
    """The machine as a Markdown table."""
    lines = ["| State | Happening | Next state | Reason given |", "|---|---|---|---|"]
    for (state, happening), step in TABLE.items():
        because = step.because or "–"
        lines.append(f"| {state.value} | {happening.value} | {step.becomes.value} | {because} |")
    return "\n".join(lines) + "\n"
