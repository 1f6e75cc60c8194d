"""The messages of docs/vectors with which the manager rules a VM's guest, and hears what it is.

Not here: moves (vector_messages.py), what nodes ask each other (vector_trust.py).
"""

from __future__ import annotations

from tools.vector_messages import ETH0, LIFETIME, TICKET, VM, Json, Speaker, answer, ask
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    AttachId,
    Definition,
    Epoch,
    GuestStateOption,
    Option,
    PhaseOption,
    Reason,
)
from vmmobility.wire.registry import GuestState, Phase, Purpose, Status

_S = GuestState


def guests() -> Json:
    """A VM is brought up, suspended, resumed, stopped, started and no more."""
    speaker = Speaker()
    vectors: list[Json] = []

    def talk(name: str, sender: str, request: Message, reply: Message) -> None:
        other = "nve-a" if sender == "manager" else "manager"
        vectors.append(speaker.vector(f"{name}: request", sender, other, request))
        vectors.append(speaker.vector(f"{name}: reply", other, sender, reply))

    def order(sequence: int, epoch: int, wanted: GuestStateOption, *more: Option) -> Message:
        return ask(Purpose.GUEST, sequence, VM, Epoch(epoch), wanted, *more)

    def done(request: Message, epoch: int, phase: Phase, state: GuestState) -> Message:
        told = GuestStateOption(state, True, 0, epoch)
        return answer(request, VM, Epoch(epoch), PhaseOption(phase), told)

    up = order(
        0x61, 3, GuestStateOption(_S.RUNNING, True), TICKET, ETH0, Definition(b'{"vcpus":1}')
    )
    talk("a VM that the NVE has nothing of", "manager", up,
         done(up, 4, Phase.SERVING, _S.RUNNING))  # fmt: skip
    for sequence, epoch, state, phase, grace_s in (
        (0x62, 5, _S.SUSPENDED, Phase.STOPPED, 0),
        (0x63, 6, _S.RUNNING, Phase.SERVING, 0),
        (0x64, 7, _S.STOPPED, Phase.STOPPED, 60),
    ):
        request = order(sequence, epoch, GuestStateOption(state, True, grace_s))
        talk(f"to be {state.name}", "manager", request, done(request, epoch, phase, state))
    held = GuestStateOption(_S.STOPPED, True, 0, 7)
    request = ask(Purpose.REFRESH, 0x71, VM, AttachId(3), Epoch(4), held, lifetime=LIFETIME)
    talk("its NVE tells what it is", "nve-a", request,
         answer(request, VM, Epoch(4), lifetime=LIFETIME))  # fmt: skip
    request = order(0x65, 8, GuestStateOption(_S.SUSPENDED, True))
    refused = answer(
        request, VM, Epoch(7), PhaseOption(Phase.STOPPED), held, Reason("it is stopped"),
        status=Status.WRONG_PHASE,
    )  # fmt: skip
    talk("it is not suspended when it is stopped", "manager", request, refused)
    request = order(0x66, 9, GuestStateOption(_S.NONE, True))
    talk("to be no more", "manager", request,
         answer(request, VM, Epoch(9), PhaseOption(Phase.NONE)))  # fmt: skip
    return {
        "description": "GUEST in both its uses, and a REFRESH that tells the guest's state "
        "(Section 10.11).",
        "vectors": vectors,
    }
