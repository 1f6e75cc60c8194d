"""The messages of docs/vectors about a warm standby.

Not here: a VM's life and moves (vector_messages.py).
"""

from __future__ import annotations

from ipaddress import IPv4Address

from tools.vector_messages import ETH0, NVE_A, NVE_B, VM, Json, Speaker, answer, ask
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    AttachId,
    Checkpoint,
    Definition,
    Endpoint,
    Epoch,
    Option,
    PhaseOption,
    Protection,
    Reason,
    ServingNve,
    Ticket,
)
from vmmobility.wire.registry import Phase, Purpose, Status

TERMS = Protection(True, 5000, 10000)
TOLD = Protection(True, 5000, 10000, "00112233445566778899aabbccddeeff")
DOOR = Endpoint(IPv4Address("192.0.2.12"), 49152)


def protection() -> Json:
    """A VM at nve-a is protected by nve-b, which takes over (Section 10.12)."""
    speaker = Speaker()
    vectors: list[Json] = []

    def talk(name: str, sender: str, other: str, request: Message, reply: Message) -> None:
        vectors.append(speaker.vector(f"{name}: request", sender, other, request))
        vectors.append(speaker.vector(f"{name}: reply", other, sender, reply))

    def order(
        name: str, node: str, number: int, phase: Phase, epoch: int, *more: Option
    ) -> Message:
        asked = ask(Purpose.PROTECT, number, VM, Epoch(epoch), PhaseOption(phase), *more)
        vectors.append(speaker.vector(f"{name}: request", "manager", node, asked))
        return asked

    def stand(
        name: str, node: str, asked: Message, phase: Phase, epoch: int, *more: Option
    ) -> None:
        reply = answer(asked, VM, Epoch(epoch), PhaseOption(phase), *more)
        vectors.append(speaker.vector(f"{name}: reply", node, "manager", reply))

    name = "be its standby"
    more = (ETH0, Definition(b"{}"), ServingNve(NVE_A), TERMS)
    asked = order(name, "nve-b", 0xA1, Phase.STANDBY, 1, *more)
    stand(name, "nve-b", asked, Phase.STANDBY, 1, DOOR, TOLD, Checkpoint(0))
    name = "be protected"
    asked = order(name, "nve-a", 0xA2, Phase.SERVING, 1, ServingNve(NVE_B), DOOR, TOLD)
    stand(name, "nve-a", asked, Phase.SERVING, 1)
    refresh = ask(
        Purpose.REFRESH, 0xA3, VM, AttachId(7), Epoch(1), TOLD, Checkpoint(3, 1200), lifetime=30
    )
    reply = answer(refresh, VM, Epoch(1), lifetime=30)
    talk("a refresh with the last checkpoint", "nve-a", "manager", refresh, reply)
    refresh = ask(
        Purpose.REFRESH, 0xA4, VM, AttachId(7), Epoch(1), TOLD, Checkpoint(3, 6200),
        Reason("no room at the standby"), lifetime=30,
    )  # fmt: skip
    late = Message(refresh.kind.REPLY, Purpose.REFRESH, 0xA4, status=Status.TRY_AGAIN)
    talk("a refresh while the standby takes over", "nve-a", "manager", refresh, late)
    name = "one last checkpoint"
    asked = order(name, "nve-a", 0xA5, Phase.SWITCHED, 1)
    stand(name, "nve-a", asked, Phase.SERVING, 1, Checkpoint(4))
    name = "take over"
    asked = order(name, "nve-b", 0xA6, Phase.ATTACHING, 2, Ticket(bytes(range(16))))
    refused = Message(
        asked.kind.REPLY, Purpose.PROTECT, 0xA6,
        (VM, Epoch(2), PhaseOption(Phase.NONE), Reason("no checkpoint is complete")),
        status=Status.HYPERVISOR_FAILURE,
    )  # fmt: skip
    vectors.append(speaker.vector(f"{name}: refusal", "nve-b", "manager", refused))
    door = ask(
        Purpose.PROTECT, 0xA7, VM, Epoch(1), PhaseOption(Phase.STANDBY), DOOR, TOLD, Checkpoint(4)
    )
    talk("a standby has restarted", "nve-b", "manager", door, answer(door, VM))
    name = "protected no more"
    asked = order(name, "nve-b", 0xA8, Phase.NONE, 2)
    stand(name, "nve-b", asked, Phase.NONE, 2)
    return {"description": "PROTECT: a warm standby (Section 10.12).", "vectors": vectors}
