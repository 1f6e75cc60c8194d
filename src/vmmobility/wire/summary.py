"""A message in one line, for people: traces of scenario tests, replayed recordings.

Not here: every field of a message (dissect.py).  Rests on message and options.
"""

from __future__ import annotations

from vmmobility.wire.message import Message
from vmmobility.wire.move_terms import terms_to_json
from vmmobility.wire.options import (
    AtServer,
    AttachId,
    Epoch,
    GroupMember,
    GroupOption,
    Guest,
    GuestStateOption,
    KnownBoot,
    MoveTerms,
    Nonce,
    Option,
    PhaseOption,
    PreviousNve,
    Reason,
    Route,
    ServerCapacity,
    ServerOption,
    ServingNve,
    Sight,
    Ticket,
    Translation,
    VmId,
)
from vmmobility.wire.registry import Kind


def summary(message: Message, *, full: bool = False) -> str:
    """The message in one line; what differs from run to run (keys, tickets) is left out.

    full: with the VM's name and the words of a refusal, where no others tell them
    """
    words = [message.purpose.name.lower()]
    vm = message.find(VmId) if full else None
    if vm is not None:
        words.append(str(vm.vm))
    if message.kind is Kind.REPLY:
        words.append(message.status.name.lower().replace("_", "-"))
    words += [word for option in message.options if (word := _word(option, full))]
    if message.lifetime:
        words.append(f"lifetime {message.lifetime}")
    return " ".join(words)


def _word(option: Option, full: bool) -> str:
    match option:
        case PhaseOption(phase):
            return phase.name
        case Epoch(epoch):
            return f"epoch {epoch}"
        case ServingNve(nve):
            return f"nve {nve.nve_id}"
        case PreviousNve(nve):
            return f"previous {nve.nve_id}"
        case AttachId():
            return "attach-id"
        case Ticket():
            return "ticket"
        case Nonce():
            return "nonce"
        case KnownBoot(boot):
            return f"known boot {boot}"
        case Guest(life):
            return f"guest {life.name.lower()}"
        case GuestStateOption(state, kept, grace_s, _, crashed):
            grace = f" within {grace_s} s" if grace_s else ""
            return f"state {state.name.lower()}{grace}" + " kept" * kept + " crashed" * crashed
        case Route(state):
            return state.name
        case GroupOption(epoch, member, name):
            return f"group {name} member {member} epoch {epoch}"
        case GroupMember(member, nve):
            return f"member {member} at {nve.nve_id}"
        case ServerOption(name, strict):
            return f"server {name}" + " or another" * (not strict)
        case AtServer(name):
            return f"at {name}"
        case ServerCapacity(name, answers):
            return f"{name} {'answers' if answers else 'does not answer'}"
        case Sight(direct, covered):
            return "direct" * direct + " covered" * covered if direct or covered else "indirect"
        case Translation(box, original, substitute):
            return f"{box} {original}>{substitute}"
        case MoveTerms():
            said = terms_to_json(option)
            return ", ".join(f"{key} {value}" for key, value in said.items())
        case Reason(text) if full:
            return f"({text})"
        case _:
            return ""
