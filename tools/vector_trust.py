"""The messages of docs/vectors with which nodes prove themselves, and ask where a VM stands.

Not here: a VM's life and moves (vector_messages.py), what must be dropped (vector_drops.py).
"""

from __future__ import annotations

from tools.vector_messages import (
    ETH0,
    LIFETIME,
    NONCE,
    NVE_A,
    NVE_B,
    VM,
    Json,
    Speaker,
    answer,
    ask,
)
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    AttachId,
    Capacity,
    Epoch,
    Guest,
    KnownBoot,
    Measurements,
    MobilityKind,
    Nonce,
    Option,
    PhaseOption,
    PreviousNve,
    Reason,
    ServerCapacity,
    ServingNve,
)
from vmmobility.wire.registry import GuestLife, Mobility, Phase, Purpose, Status

SECOND_NONCE = Nonce(bytes(range(0xD0, 0xE0)))


def challenges() -> Json:
    """First contact of nve-a and the manager; then nve-a comes back without its storage."""
    speaker = Speaker()
    vectors: list[Json] = []

    def say(name: str, sender: str, message: Message) -> None:
        receiver = "manager" if sender == "nve-a" else "nve-a"
        vectors.append(speaker.vector(name, sender, receiver, message))

    def challenge(sequence: int, nonce: Nonce, known: int) -> Message:
        return ask(Purpose.CHALLENGE, sequence, nonce, KnownBoot(known))

    manager, known, lost = 4294967960, 4294968111, 4294970002
    for name, first, record, boot in (
        ("first contact", 7, 0, known),
        ("lost storage", 9, known, lost),
    ):
        speaker.rise("nve-a", first)
        if not record:
            speaker.rise("manager", manager)
        asked = challenge(0x11, NONCE, 0)
        say(f"{name}: nve-a asks", "nve-a", asked)
        say(f"{name}: the manager answers", "manager", answer(asked, NONCE, KnownBoot(record)))
        speaker.rise("nve-a", boot)
        asked = challenge(0x22, SECOND_NONCE, record)
        say(f"{name}: the manager asks", "manager", asked)
        replied = answer(asked, SECOND_NONCE, KnownBoot(manager))
        say(f"{name}: nve-a answers above what is on record", "nve-a", replied)
    return {
        "description": "First contact of nve-a and the manager, and nve-a without its storage "
        "(Sections 13.5 and 13.6).",
        "vectors": vectors,
    }


def heartbeats() -> Json:
    """An NVE that lives, and the manager's answers (Section 10.11)."""
    speaker = Speaker()
    vectors: list[Json] = []
    cases = (
        ("nothing measured yet, manager unknown", KnownBoot(0), Capacity(1000)),
        (
            "with what is free",
            KnownBoot(4294967960),
            Capacity(1000, 16, 12, 8192, 4096, 102400, 51200),
        ),
    )
    servers = (
        ServerCapacity("server-1", True, 8, 64, 62, 16128, 12032, 102400, 51200),
        ServerCapacity("server-2", False, 8, 64, 64, 16128, 16000, 102400, 102400),
    )
    apart = Capacity(1000, 128, 126, 32256, 28032, 204800, 153600)
    tries = [(*case, ()) for case in cases]
    tries.append(("an NVE apart from its servers", KnownBoot(4294967960), apart, servers))
    for sequence, (name, known, capacity, more) in enumerate(tries, 0x91):
        request = ask(Purpose.HEARTBEAT, sequence, known, capacity, *more)
        vectors.append(speaker.vector(f"{name}: request", "nve-a", "manager", request))
        vectors.append(speaker.vector(f"{name}: reply", "manager", "nve-a", answer(request)))
    return {"description": "HEARTBEAT: an NVE lives, under its boot.", "vectors": vectors}


def checks() -> Json:
    """Where a VM stands, asked by either side; attaches of guests that run already."""
    speaker = Speaker()
    vectors: list[Json] = []

    def talk(name: str, sender: str, request: Message, reply: Message) -> None:
        other = "nve-a" if sender == "manager" else "manager"
        vectors.append(speaker.vector(f"{name}: request", sender, other, request))
        vectors.append(speaker.vector(f"{name}: reply", other, sender, reply))

    def check(name: str, sequence: int, phase: Phase, life: GuestLife, *more: Option) -> None:
        request = ask(Purpose.CHECK, sequence, VM)
        stand = VM, Epoch(2), PhaseOption(phase), Guest(life)
        talk(name, "manager", request, answer(request, *stand, *more))

    check("it serves", 0x31, Phase.SERVING, GuestLife.RUNNING)
    check("its guest waits", 0x32, Phase.PREPARED, GuestLife.HELD)
    check("its guest arrived", 0x33, Phase.ATTACHING, GuestLife.ARRIVED)
    check("its guest has departed", 0x34, Phase.DEPARTED, GuestLife.DEPARTED)
    check("it redirects", 0x35, Phase.REDIRECTING, GuestLife.NONE, ServingNve(NVE_B))
    check("it knows nothing", 0x36, Phase.NONE, GuestLife.NONE)
    found = Reason("kernel: the route is missing"), Measurements(b'{"drift": 1}')
    check("its kernel differed", 0x37, Phase.SERVING, GuestLife.RUNNING, *found)
    for sequence, phase in enumerate((Phase.REDIRECTING, Phase.DEPARTED), 0x41):
        request = ask(Purpose.REFRESH, sequence, VM, Epoch(1), PhaseOption(phase))
        reply = answer(request, VM, Epoch(2), ServingNve(NVE_B))
        talk(f"does it stand, in phase {phase.name}", "nve-a", request, reply)
    request = ask(Purpose.REFRESH, 0x43, VM, Epoch(1), PhaseOption(Phase.REDIRECTING))
    talk("it stands no more", "nve-a", request,
         answer(request, VM, status=Status.UNKNOWN_BINDING))  # fmt: skip

    def attach(sequence: int, *more: Option) -> Message:
        body = VM, ETH0, ServingNve(NVE_A), AttachId(3), MobilityKind(Mobility.HOT)
        return ask(Purpose.ATTACH, sequence, *body, *more, lifetime=LIFETIME)

    request = attach(0x51, Guest(GuestLife.ARRIVED))
    granted = answer(request, VM, Epoch(2), PreviousNve(NVE_B), lifetime=LIFETIME)
    talk("a guest that other hands moved", "nve-a", request, granted)
    request = attach(0x52, Guest(GuestLife.RUNNING))
    refused = answer(
        request, ServingNve(NVE_B), Epoch(2), Reason("nve-b serves it"),
        status=Status.BOUND_ELSEWHERE,
    )  # fmt: skip
    talk("a guest that runs elsewhere, too", "nve-a", request, refused)
    request = attach(0x53)
    for status in (Status.TRY_AGAIN, Status.FROZEN):
        talk(f"to be booted: {status.name}", "nve-a", request, answer(request, status=status))
    return {
        "description": "CHECK, REFRESH with a Phase, and attaches without a ticket of guests that "
        "run already.",
        "vectors": vectors,
    }
