"""The NVE's state machine as a table: what each trigger does to an entry in each phase.

Total: a pair that no rule names is refused (the manager's requests and people's commands) or
ignored (replies, reports, timers), as OTHERWISE says for its trigger.  docs/design/nve.md holds
the picture that `picture()` draws.  Not here: the actions (nve_registration.py,
nve_moves.py and their like).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vmmobility.wire.registry import Phase


class Trigger(Enum):
    """Everything that can happen to an entry."""

    # people, by the API
    START = "start"
    STOP = "stop"
    RELOCATE = "move to another server"
    # requests of the manager
    PREPARE_IN = "prepare: be the destination"
    PREPARE_OUT = "prepare: begin the copy"
    RELOCATE_TO = "prepare: move to another server"
    RELAY = "switch: relay to the source"
    DELIVER = "switch: deliver locally"
    TURN = "switch: redirect, then let the guest stop"
    ROLL_BACK = "switch: serve again"
    GIVE_UP = "switch: end the waiting guest"
    REDIRECT = "redirect"
    REMOVE = "deregister: the VM is no more"
    CLEAR = "deregister: the move is off"
    GUEST_RUN = "guest: run"
    GUEST_SUSPEND = "guest: be suspended"
    GUEST_STOP = "guest: stop"
    GUEST_DELETE = "guest: be no more"
    # replies of the manager
    ACCEPTED = "attach accepted"
    REFUSED = "attach refused"
    SUPERSEDED = "superseded"
    UNKNOWN = "binding unknown"
    DRAIN_ACCEPTED = "nobody needs the redirect"
    FORGOTTEN = "move unknown, and the guest still runs"
    # reports of the hypervisor
    CONVERGED = "copy has converged"
    ABOUT_TO_STOP = "guest is about to stop"
    RESUMED = "guest resumed here"
    FAILED = "move failed"
    GONE = "guest is gone"
    ARRIVED = "guest that other hands run is here"
    DEPARTED = "guest was moved away by other hands"
    # timers
    DRAINED = "redirected traffic has stopped"


class Otherwise(Enum):
    """What happens in phases that no rule names."""

    REFUSE = "refuse"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Rule:
    """In these phases the trigger runs `action`, which leaves the entry in `becomes`.

    becomes None: the action leaves the phase as it is, or finds it in the entry (fall_back; and, of
    a VM that serves or is stopped, Entry.resting).
    """

    trigger: Trigger
    phases: frozenset[Phase]
    action: str
    becomes: Phase | None = None


def _rule(trigger: Trigger, phases: str, action: str, becomes: Phase | None = None) -> Rule:
    return Rule(trigger, frozenset(Phase[name] for name in phases.split()), action, becomes)


RULES: tuple[Rule, ...] = (
    _rule(Trigger.START, "NONE REDIRECTING", "start", Phase.ATTACHING),
    _rule(Trigger.STOP, "ATTACHING SERVING DEPARTED STOPPED", "stop"),
    _rule(Trigger.RELOCATE, "SERVING", "relocate", Phase.RELOCATING),
    _rule(Trigger.RELOCATE_TO, "SERVING RELOCATING", "relocate_asked"),
    _rule(Trigger.PREPARE_IN, "NONE REDIRECTING", "prepare_in", Phase.PREPARED),
    _rule(Trigger.PREPARE_IN, "PREPARED DELIVERING FAILED", "prepare_in_again", Phase.PREPARED),
    _rule(Trigger.PREPARE_OUT, "SERVING STOPPED", "prepare_out", Phase.COPYING),
    _rule(Trigger.PREPARE_OUT, "COPYING CONVERGED", "acknowledge_again"),
    _rule(Trigger.RELAY, "PREPARED", "relay"),
    _rule(Trigger.DELIVER, "PREPARED", "deliver", Phase.DELIVERING),
    _rule(Trigger.DELIVER, "DELIVERING ATTACHING SERVING STOPPED", "acknowledge_again"),
    _rule(Trigger.TURN, "CONVERGED", "turn", Phase.SWITCHED),
    _rule(Trigger.TURN, "SWITCHED", "acknowledge_again"),
    _rule(Trigger.ROLL_BACK, "SERVING COPYING CONVERGED SWITCHED STOPPED", "roll_back"),
    _rule(Trigger.GIVE_UP, "PREPARED DELIVERING FAILED", "give_up", Phase.FAILED),
    _rule(Trigger.GIVE_UP, "NONE REDIRECTING", "off_already"),
    _rule(Trigger.REDIRECT, "SWITCHED REDIRECTING NONE DEPARTED", "redirect", Phase.REDIRECTING),
    _rule(Trigger.REDIRECT, "ATTACHING", "redirect_claim"),
    _rule(Trigger.REDIRECT, "PREPARED DELIVERING FAILED", "redirect_prepared"),
    _rule(
        Trigger.REMOVE,
        "SWITCHED REDIRECTING PREPARED DELIVERING FAILED DEPARTED",
        "remove",
        Phase.NONE,
    ),
    _rule(Trigger.REMOVE, "ATTACHING", "remove_claim"),
    _rule(Trigger.REMOVE, "NONE", "off_already"),
    _rule(Trigger.CLEAR, "PREPARED DELIVERING FAILED", "fall_back"),
    _rule(Trigger.CLEAR, "NONE REDIRECTING SWITCHED DEPARTED", "off_already"),
    _rule(Trigger.GUEST_RUN, "SERVING STOPPED", "run_guest"),
    _rule(Trigger.GUEST_RUN, "NONE REDIRECTING", "provision"),
    _rule(Trigger.GUEST_SUSPEND, "SERVING STOPPED", "suspend_guest"),
    _rule(Trigger.GUEST_STOP, "SERVING STOPPED", "stop_guest"),
    _rule(Trigger.GUEST_DELETE, "SERVING STOPPED", "delete_guest"),
    _rule(Trigger.GUEST_DELETE, "NONE", "off_already"),
    _rule(Trigger.ACCEPTED, "ATTACHING", "accepted", Phase.SERVING),
    _rule(Trigger.ACCEPTED, "SERVING COPYING CONVERGED STOPPED RELOCATING", "reattached"),
    _rule(Trigger.REFUSED, "ATTACHING SERVING COPYING CONVERGED STOPPED RELOCATING", "refused"),
    _rule(
        Trigger.SUPERSEDED,
        "ATTACHING SERVING COPYING CONVERGED STOPPED",
        "superseded",
        Phase.REDIRECTING,
    ),
    _rule(Trigger.SUPERSEDED, "RELOCATING", "superseded_relocating", Phase.REDIRECTING),
    _rule(Trigger.UNKNOWN, "SERVING COPYING CONVERGED STOPPED RELOCATING", "attach_again"),
    _rule(Trigger.DRAIN_ACCEPTED, "SWITCHED REDIRECTING", "remove", Phase.NONE),
    _rule(Trigger.FORGOTTEN, "SWITCHED", "serve_on"),
    _rule(Trigger.CONVERGED, "COPYING", "converged", Phase.CONVERGED),
    _rule(Trigger.CONVERGED, "RELOCATING", "relocation_converged"),
    _rule(Trigger.ABOUT_TO_STOP, "SWITCHED", "redirect_now"),
    _rule(Trigger.ABOUT_TO_STOP, "RELOCATING", "relocation_turn"),
    _rule(Trigger.RESUMED, "RELOCATING", "relocation_resumed"),
    _rule(Trigger.FAILED, "RELOCATING", "relocation_failed"),
    _rule(Trigger.GONE, "RELOCATING", "relocation_gone"),
    _rule(Trigger.RESUMED, "PREPARED DELIVERING FAILED", "resumed", Phase.ATTACHING),
    _rule(Trigger.FAILED, "PREPARED DELIVERING", "incoming_failed", Phase.FAILED),
    _rule(Trigger.FAILED, "COPYING CONVERGED", "copy_failed"),
    _rule(Trigger.FAILED, "SWITCHED", "switch_failed"),
    _rule(Trigger.GONE, "ATTACHING SERVING COPYING CONVERGED", "guest_gone"),
    _rule(Trigger.GONE, "STOPPED", "held_gone", Phase.STOPPED),
    _rule(Trigger.GONE, "SWITCHED REDIRECTING DEPARTED", "note_gone"),
    _rule(Trigger.GONE, "PREPARED DELIVERING", "incoming_failed", Phase.FAILED),
    _rule(Trigger.ARRIVED, "NONE REDIRECTING DEPARTED", "arrived", Phase.ATTACHING),
    _rule(Trigger.ARRIVED, "ATTACHING", "went_on"),
    _rule(Trigger.DEPARTED, "ATTACHING SERVING", "departed", Phase.DEPARTED),
    _rule(Trigger.DRAINED, "REDIRECTING", "drained"),
)

OTHERWISE: dict[Trigger, Otherwise] = {
    trigger: Otherwise.REFUSE
    if trigger
    in {
        Trigger.START,
        Trigger.STOP,
        Trigger.RELOCATE_TO,
        Trigger.PREPARE_IN,
        Trigger.PREPARE_OUT,
        Trigger.RELAY,
        Trigger.DELIVER,
        Trigger.TURN,
        Trigger.ROLL_BACK,
        Trigger.GIVE_UP,
        Trigger.REDIRECT,
        Trigger.REMOVE,
        Trigger.CLEAR,
        Trigger.GUEST_RUN,
        Trigger.GUEST_SUSPEND,
        Trigger.GUEST_STOP,
        Trigger.GUEST_DELETE,
    }
    else Otherwise.IGNORE
    for trigger in Trigger
}

TABLE: dict[tuple[Phase, Trigger], Rule] = {
    (phase, rule.trigger): rule for rule in RULES for phase in rule.phases
}


def picture() -> str:
    """The machine as a Markdown table: a row a trigger, what it does in which phases."""
    lines = ["| Trigger | In phase | Action | Then |", "|---|---|---|---|"]
    for rule in RULES:
        phases = ", ".join(p.name for p in sorted(rule.phases))
        then = rule.becomes.name if rule.becomes is not None else "–"
        lines.append(f"| {rule.trigger.value} | {phases} | `{rule.action}` | {then} |")
    for trigger, otherwise in OTHERWISE.items():
        lines.append(f"| {trigger.value} | any other | {otherwise.value} | – |")
    return "\n".join(lines) + "\n"
