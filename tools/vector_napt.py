"""The messages of docs/vectors that cross a NAPT box, and those that boxes send each other.

An NVE's attach and its reply on both hops: as the originator seals them for the receiver, and as
the box sends them on.  Not here: other messages (vector_messages.py).
"""

from __future__ import annotations

from ipaddress import IPv4Address

from tools.vector_messages import (
    BOOTS,
    ETH0,
    FLOW,
    KEYS,
    LIFETIME,
    NVE_A,
    PRIVATE,
    PUBLIC,
    VM,
    Json,
    Speaker,
    answer,
    ask,
)
from vmmobility.wire import dissect
from vmmobility.wire.authentication import Seal, seal
from vmmobility.wire.message import Message, encode_parts
from vmmobility.wire.options import (
    AttachId,
    Epoch,
    Mapping,
    PhaseOption,
    Reason,
    ServingNve,
    VmId,
)
from vmmobility.wire.origin import RELAYED_TRAILER, receiver_option, seal_origin, translate
from vmmobility.wire.registry import MAX_DATAGRAM, Phase, Purpose, Status

LOCATOR, PUBLIC_LOCATOR = IPv4Address("10.0.1.2"), IPv4Address("198.51.100.1")
CHANGES = {LOCATOR: PUBLIC_LOCATOR, PRIVATE: PUBLIC}
MAPPING = Mapping("napt-1", PRIVATE, PUBLIC)


def boxes() -> Json:
    """HOLD and HANDOVER, as a VM of napt-1's pool is behind napt-2, and comes back."""
    speaker, vectors = Speaker(), []
    about: list[VmId | Epoch | Mapping] = [VM, Epoch(2), MAPPING]
    hold = ask(Purpose.HOLD, 0xB1, *about, lifetime=900)
    over = ask(Purpose.HANDOVER, 0xB2, *about, FLOW)
    again = ask(Purpose.HOLD, 0xB3, *about, PhaseOption(Phase.SERVING), lifetime=900)
    gone = ask(Purpose.HOLD, 0xB4, *about)
    unknown = Reason("napt-1 has no mapping of 10.1.0.5 to 198.51.100.2")
    talk = [
        ("hold", "napt-2", hold, answer(hold, lifetime=900)),
        ("handover", "napt-1", over, answer(over)),
        ("hold by the box that translates", "napt-2", again, answer(again, lifetime=900)),
        ("the VM is no more", "napt-2", gone, answer(gone)),
        ("hold, unknown", "napt-2", hold, answer(hold, unknown, status=Status.UNKNOWN_BINDING)),
    ]
    for name, asker, request, reply in talk:
        other = "napt-1" if asker == "napt-2" else "napt-2"
        vectors.append(speaker.vector(f"{name}: request", asker, other, request))
        vectors.append(speaker.vector(f"{name}: reply", other, asker, reply))
    return {"description": "What two NAPT boxes tell each other.", "vectors": vectors}


def napt() -> Json:
    """An attach and its reply on both sides of a box; and the box's own refusal."""
    attach = ask(Purpose.ATTACH, 0xA1, VM, ETH0, ServingNve(NVE_A), AttachId(1), lifetime=LIFETIME)
    granted = answer(attach, VM, Epoch(1), lifetime=LIFETIME)
    sealed = _sealed(attach, "nve-a", "manager")
    reply = _sealed(granted, "manager", "nve-a")
    crossings = [
        ("attach, from the NVE to the box", "nve-a", "manager", "nve-a", sealed),
        (
            "attach, from the box to the manager",
            "nve-a",
            "manager",
            "manager",
            translate(sealed, "napt-1", CHANGES),
        ),
        ("the reply, from the manager to the box", "manager", "nve-a", "manager", reply),
        ("the reply, from the box to the NVE", "manager", "nve-a", "nve-a", reply),
    ]
    first, second = KEYS["manager", "nve-a"], BOOTS["nve-a"]
    return {
        "description": "An attach and its reply, on both hops of a NAPT box.  hop_key is the box's"
        " with `hop`; origin_key is the originator's and the receiver's.  What the box sends is"
        " under a boot of its own.",
        "box": "napt-1",
        "pool": "198.51.100.0/28",
        "origin_key": first[1].hex(),
        "origin_key_id": 1,
        "nve_boot": f"{second:016x}",
        "vectors": [_crossing(number, *c) for number, c in enumerate(crossings, 1)],
    }


def _sealed(message: Message, sender: str, receiver: str) -> Message:
    return seal_origin(message, sender, receiver, 1, BOOTS[sender], KEYS["manager", "nve-a"][1])


def _crossing(
    number: int, name: str, sender: str, receiver: str, hop: str, message: Message
) -> Json:
    pair = ("manager", "napt-1") if hop == "manager" else ("napt-1", "nve-a")
    secret = KEYS[pair][1]
    own = hop == sender  # the originator's own datagram, under its own boot
    boot = BOOTS[sender] if own else BOOTS["napt-1"]
    marks = (Seal(sender, 1, boot, n) for n in range(number, 100))
    parts = encode_parts(message, MAX_DATAGRAM, RELAYED_TRAILER)
    made = [
        seal(part + receiver_option(receiver), mark, secret)
        for part, mark in zip(parts, marks, strict=False)
    ]
    return {
        "name": name,
        "sender": sender,
        "receiver": receiver,
        "hop": hop,
        "hop_key": secret.hex(),
        "hop_key_id": 1,
        "boot": f"{boot:016x}",
        "counter": f"{number:016x}",
        "datagrams": [data.hex() for data in made],
        "message": dissect.readable(message),
    }
