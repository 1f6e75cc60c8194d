"""The datagrams of docs/vectors that must be dropped: octets, the reason, the answer.

Not here: messages (vector_messages.py), writing files (make_vectors.py).
"""

from __future__ import annotations

from dataclasses import replace

from tools.vector_messages import BOOTS, KEYS, LIFETIME, NONCE, VM, Json, ask
from vmmobility.wire.authentication import TRAILER, Seal, seal
from vmmobility.wire.message import Message, encode_parts
from vmmobility.wire.options import AttachId, Epoch, KnownBoot, Nonce, Option
from vmmobility.wire.registry import MAX_DATAGRAM, Kind, Purpose


def _raw(
    body: bytes, head: bytes = b"\1\1\1\0", part: bytes = b"\1\1", length: int | None = None
) -> bytes:
    total = 16 + len(body) + TRAILER if length is None else length
    return b"".join((head, bytes(2), total.to_bytes(2, "big"), bytes(3), b"\x2a\0\x1e", part, body))


def _tlv(wire_type: int, data: bytes) -> bytes:
    return wire_type.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


def invalid() -> Json:
    """Datagrams that must be dropped, with the reason to count and the status to answer."""
    vm = _tlv(0x8001, b"\0\0\0\0vm-1")
    mark = Seal("nve-a", 1, BOOTS["nve-a"], 1)
    secret = KEYS["manager", "nve-a"][1]

    def sealed(data: bytes, claim: Seal = mark) -> bytes:
        return seal(data, claim, secret)

    def flip(data: bytes, at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    good = sealed(_raw(vm))
    no_name = good[: -32 - 32] + bytes(32)
    spaced = good[: -32 - 32] + b"nve a".ljust(32, b"\0")
    outside: list[tuple[str, str, bytes]] = [
        ("empty", "truncated", b""),
        ("shorter than a seal", "truncated", good[:87]),
        ("no seal at the end", "unauthenticated", _raw(vm) + _tlv(0x7000, bytes(84))),
        ("a seal with the U bit clear", "unauthenticated", good[:-88] + b"\0" + good[-87:]),
        ("a key-ID that nobody has", "unknown-key", sealed(_raw(vm), replace(mark, key_id=9))),
        ("a sender that nobody knows", "unknown-key", sealed(_raw(vm), replace(mark, sender="x"))),
        ("a sender without a name", "bad-value", no_name + bytes(32)),
        ("a sender with a space", "bad-value", spaced + bytes(32)),
        ("boot 0", "bad-value", good[:-80] + bytes(8) + good[-72:]),
        ("boot 2^63", "bad-value", good[:-80] + b"\x80" + bytes(7) + good[-72:]),
        ("a changed option", "bad-digest", flip(good, 23)),
        ("a changed counter", "bad-digest", flip(good, len(good) - 65)),
        ("a changed digest", "bad-digest", flip(good, len(good) - 1)),
        ("another pair's key", "bad-digest",
         seal(_raw(vm), mark, KEYS["manager", "nve-b"][1])),
        ("1,233 octets", "too-long", sealed(_raw(_tlv(0x7000, bytes(1125))))),
    ]  # fmt: skip
    inside: list[tuple[str, str, str | None, bytes]] = [
        ("a header of 15 octets", "truncated", "MALFORMED", _raw(b"", length=103)[:15]),
        ("version 2", "unsupported-version", "UNSUPPORTED_VERSION", _raw(vm, b"\2\1\1\0")),
        ("kind 3", "bad-value", None, _raw(vm, b"\1\3\1\0")),
        ("purpose 0", "bad-value", None, _raw(vm, b"\1\1\0\0")),
        ("purpose 99", "bad-value", None, _raw(vm, b"\1\1\x63\0")),
        ("a request with a status", "bad-value", "MALFORMED", _raw(vm, b"\1\1\1\x80")),
        ("Length too great", "length", "MALFORMED", _raw(vm, length=117)),
        ("Length without the seal", "length", "MALFORMED", _raw(vm, length=28)),
        ("part 0 of 1", "parts", "MALFORMED", _raw(vm, part=b"\0\1")),
        ("part 2 of 1", "parts", "MALFORMED", _raw(vm, part=b"\2\1")),
        ("part 1 of 17", "parts", "MALFORMED", _raw(vm, part=b"\1\x11")),
        ("half an option header", "truncated", "MALFORMED", _raw(vm + b"\x80\5\0")),
        ("an option longer than its message", "truncated", "MALFORMED", _raw(vm + b"\x80\5\0\x09")),
        ("an unknown option of the must-understand kind", "unsupported-option",
         "UNSUPPORTED_OPTION", _raw(vm + _tlv(0xF234, b"!"))),
        ("a bad reply is never answered", "unsupported-option", None,
         _raw(vm + _tlv(0xF234, b"!"), b"\1\2\1\0")),
        ("two VM-IDs", "repeated-option", "MALFORMED", _raw(vm + vm)),
        ("a seal amid the options", "repeated-option", "MALFORMED",
         _raw(good[-88:] + vm)),
        ("an epoch of 7 octets", "option-length", "MALFORMED", _raw(vm + _tlv(0x8005, bytes(7)))),
        ("an epoch of 9 octets", "option-length", "MALFORMED", _raw(vm + _tlv(0x8005, bytes(9)))),
        ("a ticket of 15 octets", "option-length", "MALFORMED", _raw(vm + _tlv(0x8006, bytes(15)))),
        ("a VM-ID of 65 octets", "option-length", "MALFORMED",
         _raw(_tlv(0x8001, bytes(4) + b"x" * 65))),
        ("a VM-ID with a space", "bad-value", "MALFORMED", _raw(_tlv(0x8001, b"\0\0\0\0a b"))),
        ("a VM-ID with a slash", "bad-value", "MALFORMED", _raw(_tlv(0x8001, b"\0\0\0\0a/b"))),
        ("a VM-ID that is not UTF-8", "bad-value", "MALFORMED",
         _raw(_tlv(0x8001, b"\0\0\0\0\xc3\x28"))),
        ("a VM-ID with a control character", "bad-value", "MALFORMED",
         _raw(_tlv(0x8001, b"\0\0\0\0a\x7f"))),
        ("a group's MAC", "bad-value", "MALFORMED", _raw(vm + _tlv(0x8002, b"\1" + bytes(5)))),
        ("a MAC of zeros", "bad-value", "MALFORMED", _raw(vm + _tlv(0x8002, bytes(6)))),
        ("a prefix with host bits", "bad-value", "MALFORMED",
         _raw(vm + _tlv(0x8002, b"\2\0\0\0\0\1\4\x18\x0a\0\0\1"))),
        ("a prefix of 33 bits", "bad-value", "MALFORMED",
         _raw(vm + _tlv(0x8002, b"\2\0\0\0\0\1\4\x21\x0a\0\0\1"))),
        ("a prefix of family 5", "bad-value", "MALFORMED",
         _raw(vm + _tlv(0x8002, b"\2\0\0\0\0\1\5\x18\x0a\0\0\0"))),
        ("a prefix cut short", "truncated", "MALFORMED",
         _raw(vm + _tlv(0x8002, b"\2\0\0\0\0\1\6\x40\x20\1"))),
        ("an NVE-ID longer than its option", "truncated", "MALFORMED",
         _raw(vm + _tlv(0x8003, b"\x20nve-a"))),
        ("an NVE-ID of 33 octets", "bad-value", "MALFORMED",
         _raw(vm + _tlv(0x8003, b"\x21" + b"n" * 33))),
        ("two IPv4 locators", "bad-value", "MALFORMED",
         _raw(vm + _tlv(0x8003, b"\1n\4\x0a\0\0\1\4\x0a\0\0\2"))),
        ("a link-local locator", "bad-value", "MALFORMED",
         _raw(vm + _tlv(0x8003, b"\1n\6\xfe\x80" + bytes(13) + b"\1"))),
        ("a multicast locator", "bad-value", "MALFORMED",
         _raw(vm + _tlv(0x8004, b"\1n\4\xe0\0\0\1"))),
        ("mobility kind 0", "bad-value", "MALFORMED", _raw(vm + _tlv(0x8008, bytes(3)))),
        ("phase 255", "bad-value", "MALFORMED", _raw(vm + _tlv(0x8009, b"\xff"))),
        ("a guest's life 255", "bad-value", "MALFORMED", _raw(vm + _tlv(0x8013, b"\xff"))),
        ("a nonce of 15 octets", "option-length", "MALFORMED", _raw(vm + _tlv(0x8011, bytes(15)))),
        ("an endpoint's port zero", "bad-value", "MALFORMED",
         _raw(vm + _tlv(0x800C, b"\0\0\4\x0a\0\0\1"))),
        ("an IPv4 endpoint with octets left", "trailing", "MALFORMED",
         _raw(vm + _tlv(0x800C, b"\xc0\0\4\x0a\0\0\1\0"))),
        ("half a supported value", "truncated", "MALFORMED", _raw(vm + _tlv(0x000F, b"\0\1\0"))),
    ]  # fmt: skip
    rows: list[tuple[str, str, str | None, bytes]]
    rows = [(name, reason, None, data) for name, reason, data in outside]
    rows += [(name, reason, status, sealed(data)) for name, reason, status, data in inside]
    return {
        "description": "Datagrams that the manager drops: the reason that it counts, and the "
        "status with which it answers them (null: silence).  Each stands alone; nve-a has boot "
        f"{mark.boot:016x}, which is on record with `high` 0, and sends counter 1.",
        "receiver": "manager",
        "keys": {"nve-a": {"1": secret.hex()}},
        "vectors": [
            {"name": name, "datagram": data.hex(), "reason": reason, "answer": status}
            for name, reason, status, data in rows
        ],
    }


def replay() -> Json:
    """Datagrams in their order of arrival and what becomes of each."""
    secret = KEYS["manager", "nve-a"][1]
    first = BOOTS["nve-a"]
    right = Nonce(NONCE.nonce), KnownBoot(0)
    wrong = Nonce(NONCE.nonce[::-1]), KnownBoot(0)
    steps: list[tuple[int, int, tuple[Option, ...], str]] = [
        (first, 5, (), "unproven"),
        (first, 6, wrong, "unproven"),
        (first, 7, right, "proves"),
        (first, 7, right, "replayed"),
        (first, 5, (), "replayed"),
        (first, 1, (), "replayed"),
        (first, 8, (), "accepted"),
        (first, 8, (), "replayed"),
        (first, 10, (), "accepted"),
        (first, 9, (), "accepted"),
        (first, 9, (), "replayed"),
        (first, 1035, (), "accepted"),
        (first, 11, (), "too-old"),
        (first, 12, (), "accepted"),
        (first, 12, (), "replayed"),
        (first + 1, 1, (), "unproven"),
        (first, 1036, (), "accepted"),
        (first - 1, 2000, (), "old-boot"),
        (first - 1, 2001, right, "old-boot"),
        (first + 1, 2, right, "proves"),
        (first + 1, 1, (), "replayed"),
        (first + 1, 3, (), "accepted"),
        (first, 1037, (), "old-boot"),
    ]
    vectors = []
    for number, (boot, counter, options, verdict) in enumerate(steps, 0x91):
        if options:
            message = Message(Kind.REPLY, Purpose.CHALLENGE, number, options)
        else:
            message = ask(Purpose.REFRESH, number, VM, AttachId(1), Epoch(1), lifetime=LIFETIME)
        (unsealed,) = encode_parts(message, MAX_DATAGRAM, TRAILER)
        sealed = seal(unsealed, Seal("nve-a", 1, boot, counter), secret)
        vectors.append(
            {
                "boot": f"{boot:016x}",
                "counter": f"{counter:016x}",
                "datagram": sealed.hex(),
                "verdict": verdict,
            }
        )
    return {
        "description": "Datagrams of nve-a in their order of arrival at a manager that has nothing "
        "of it on record and sends all its CHALLENGEs with this nonce.  The verdict on each: "
        "accepted, proves (the right answer to the challenge), or the reason of the drop.  The "
        "window has 1,024 counters.",
        "key": secret.hex(),
        "nonce": NONCE.nonce.hex(),
        "vectors": vectors,
    }
