"""docs/vectors: the stored bytes against encoder and decoder, and one datagram made by hand."""

import hashlib
import json
import random
import re
import struct
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from vmmobility.engine.channel import Channel, Peer, Retransmission
from vmmobility.engine.outputs import Endpoint, Outbox, Persist, Send
from vmmobility.errors import DecodeError
from vmmobility.wire import dissect
from vmmobility.wire.authentication import TRAILER, Seal, open_sealed, seal
from vmmobility.wire.message import decode_part, encode_parts, join_parts
from vmmobility.wire.options import OPTIONS, OriginAuthentication
from vmmobility.wire.origin import (
    RELAYED_TRAILER,
    read_receiver,
    receiver_option,
    verify_origin,
)
from vmmobility.wire.registry import (
    MAX_DATAGRAM,
    GuestLife,
    Phase,
    Purpose,
    Role,
    RouteState,
    Status,
)

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "docs" / "vectors"
MESSAGES = (
    "guests",
    "options",
    "registrations",
    "hot-move",
    "parts",
    "challenges",
    "checks",
    "heartbeats",
    "protection",
    "routes",
    "boxes",
)

Json = dict[str, Any]


def load(name: str) -> Json:
    content: Json = json.loads((VECTORS / f"{name}.json").read_text("utf-8"))
    return content


def vectors(*files: str) -> list[Any]:
    return [
        pytest.param(vector, id=f"{file}: {vector['name']}")
        for file in files
        for vector in load(file)["vectors"]
    ]


def secrets_of(content: Json):
    """The receiver's look-up of a sender's key: a vector's one key, or a file's several."""
    keys = content.get("keys") or {content["sender"]: {str(content["key_id"]): content["key"]}}

    def secret(sender: str, key_id: int) -> bytes | None:
        text = keys.get(sender, {}).get(str(key_id))
        return bytes.fromhex(text) if text else None

    return secret


@pytest.mark.parametrize("vector", vectors(*MESSAGES))
def test_stored_octets_decode_to_the_stored_message(vector):
    parts = []
    for number, text in enumerate(vector["datagrams"]):
        datagram = bytes.fromhex(text)
        assert len(datagram) <= MAX_DATAGRAM
        mark = open_sealed(datagram, secrets_of(vector))
        assert mark.boot == int(vector["boot"], 16)
        assert mark.counter == int(vector["counter"], 16) + number
        parts.append(decode_part(datagram, TRAILER))
    assert dissect.readable(join_parts(parts)) == vector["message"]


@pytest.mark.parametrize("vector", vectors(*MESSAGES))
def test_the_stored_message_encodes_to_the_stored_octets(vector):
    message = dissect.message_of(vector["message"])
    secret, boot = bytes.fromhex(vector["key"]), int(vector["boot"], 16)
    counter = int(vector["counter"], 16)
    made = [
        seal(part, Seal(vector["sender"], vector["key_id"], boot, counter + number), secret).hex()
        for number, part in enumerate(encode_parts(message, MAX_DATAGRAM, TRAILER))
    ]
    assert made == vector["datagrams"]


def open_and_decode(datagram: bytes, content: Json) -> None:
    open_sealed(datagram, secrets_of(content))
    decode_part(datagram, TRAILER)


@pytest.mark.parametrize("vector", vectors("invalid"))
def test_an_invalid_datagram_is_dropped_for_the_stored_reason(vector):
    datagram = bytes.fromhex(vector["datagram"])
    if vector["reason"] == "too-long":  # the channel's rule, before anything is read
        assert len(datagram) > MAX_DATAGRAM
        return
    with pytest.raises(DecodeError) as caught:
        open_and_decode(datagram, load("invalid"))
    assert caught.value.reason == vector["reason"]


@pytest.mark.parametrize("vector", vectors("invalid"))
def test_a_node_counts_and_answers_it_as_stored(vector):
    content, outbox = load("invalid"), Outbox()
    secret = bytes.fromhex(content["keys"]["nve-a"]["1"])
    source = Endpoint(IPv4Address("10.0.1.2"), 8747)
    peer = Peer("nve-a", Role.NVE, (source,), {1: secret}, 1)
    channel = Channel(
        content["receiver"], 1, [peer], {}, outbox, random.Random(1), Retransmission()
    )
    boot = re.search(r"boot ([0-9a-f]{16}), which is on record", content["description"])
    assert boot
    channel.restore({"mark/nve-a": [int(boot[1], 16), 0]})
    assert channel.datagram(bytes.fromhex(vector["datagram"]), source, None, 0.0) is None
    assert dict(channel.drops) == {vector["reason"]: 1}
    outputs = outbox.flush()
    for persist in [o for o in outputs if isinstance(o, Persist)]:
        outbox.persisted(persist.number)
    sent = [o for o in (*outputs, *outbox.flush()) if isinstance(o, Send)]
    statuses = [decode_part(o.data, TRAILER).message.status.name for o in sent]
    assert statuses == ([vector["answer"]] if vector["answer"] else [])


@pytest.mark.parametrize("vector", vectors("napt"))
def test_what_crosses_a_box_is_as_stored_and_its_originator_s(vector):
    content, parts = load("napt"), []
    secret, origin_key = bytes.fromhex(vector["hop_key"]), bytes.fromhex(content["origin_key"])
    for number, text in enumerate(vector["datagrams"]):
        datagram = bytes.fromhex(text)
        mark = open_sealed(datagram, lambda *_: secret)
        assert (mark.sender, mark.boot) == (vector["sender"], int(vector["boot"], 16))
        assert mark.counter == int(vector["counter"], 16) + number
        assert read_receiver(datagram) == vector["receiver"]
        parts.append(decode_part(datagram, RELAYED_TRAILER))
    message = join_parts(parts)
    assert dissect.readable(message) == vector["message"]
    own = message.need(OriginAuthentication)
    assert verify_origin(message, own, vector["sender"], vector["receiver"], origin_key)
    assert not verify_origin(message, own, vector["receiver"], vector["sender"], origin_key)
    made = encode_parts(dissect.message_of(vector["message"]), MAX_DATAGRAM, RELAYED_TRAILER)
    option = receiver_option(vector["receiver"])
    boot, counter = int(vector["boot"], 16), int(vector["counter"], 16)
    again = [
        seal(part + option, Seal(vector["sender"], 1, boot, counter + n), secret).hex()
        for n, part in enumerate(made)
    ]
    assert again == vector["datagrams"]


def test_a_box_alters_addresses_and_says_so():
    before, after, *_ = (v["message"]["options"] for v in load("napt")["vectors"])
    told = [o for o in after if o["option"] == "Translation"]
    assert [(o["original"], o["substitute"]) for o in told] == [
        ("10.0.1.2", "198.51.100.1"),
        ("10.1.0.5", "198.51.100.2"),
    ]
    rest = json.dumps([o for o in after if o["option"] != "Translation"])
    for note in told:
        rest = rest.replace(f'"{note["substitute"]}', f'"{note["original"]}')
    assert json.loads(rest) == before


class Foretold(random.Random):
    """Its 128 random bits are known beforehand."""

    nonce = 0

    def getrandbits(self, bits: int) -> int:
        return self.nonce if bits == 128 else super().getrandbits(bits)


def test_replays_are_dropped_as_stored():
    content, outbox, chance = load("replay"), Outbox(), Foretold(1)
    chance.nonce = int(content["nonce"], 16)
    source = Endpoint(IPv4Address("10.0.1.2"), 8747)
    peer = Peer("nve-a", Role.NVE, (source,), {1: bytes.fromhex(content["key"])}, 1)
    rights = {Purpose.REFRESH: frozenset({Role.NVE})}
    channel = Channel("manager", 1, [peer], rights, outbox, chance, Retransmission())
    channel.start(0.0)
    for now, vector in enumerate(content["vectors"], 1):
        mark = (int(vector["boot"], 16), int(vector["counter"], 16))
        drops, unproven = dict(channel.drops), peer.window.boot != mark[0]
        received = channel.datagram(bytes.fromhex(vector["datagram"]), source, None, now)
        if vector["verdict"] == "accepted":
            assert received is not None, vector
        elif vector["verdict"] == "proves":
            assert unproven
            assert (peer.window.boot, peer.window.high) == mark
        else:
            assert received is None
            count = drops.get(vector["verdict"], 0) + 1
            assert channel.drops == drops | {vector["verdict"]: count}, vector


def test_the_vectors_cover_every_option_phase_and_rejection():
    messages = [v["message"] for f in MESSAGES for v in load(f)["vectors"]]
    entries = [o for m in messages for o in m["options"]]
    assert {o["option"] for o in entries} == {d.name for d in OPTIONS} | {"unknown"}
    assert {o["phase"] for o in entries if o["option"] == "Phase"} == {p.name for p in Phase}
    assert {o["life"] for o in entries if o["option"] == "Guest"} == {g.name for g in GuestLife}
    assert {o["state"] for o in entries if o["option"] == "Route"} == {s.name for s in RouteState}
    sights = {(o["direct"], o["covered"]) for o in entries if o["option"] == "Sight"}
    assert len(sights) == 4
    assert {m["purpose"] for m in messages} == {p.name for p in Purpose}
    assert {m["status"] for m in messages} >= {s.name for s in Status if not s.accepted}


def test_the_generator_makes_what_is_stored():
    made = subprocess.run(
        [sys.executable, ROOT / "tools" / "make_vectors.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr


def hmac_sha256(key: bytes, octets: bytes) -> bytes:
    """RFC 2104, written out: neither the encoder's code nor its library."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + octets).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).digest()


def test_a_datagram_made_by_hand_is_the_stored_one():
    """The draft's registration (Section 5), from docs/protocol.md with struct alone."""
    options = b"".join(
        (
            struct.pack("!HHI4s", 0x8001, 8, 0, b"vm-1"),
            struct.pack(
                "!HH6sBB4sBB16s",
                0x8002, 30, bytes.fromhex("525400000001"),
                4, 32, bytes((10, 1, 0, 5)),
                6, 128, bytes.fromhex("fd010000000000000000000000000005"),
            ),
            struct.pack(
                "!HHB5sB4sB16s",
                0x8003, 28, 5, b"nve-a",
                4, bytes((10, 0, 1, 2)),
                6, bytes.fromhex("fd000000000100000000000000000002"),
            ),
            struct.pack("!HHQ", 0x8007, 8, 1),
            struct.pack("!HHBH", 0x8008, 3, 1, 0),
            struct.pack("!HHQ", 0x000A, 8, 1_760_000_000_000_000_000),
        )
    )  # fmt: skip
    length = 16 + len(options) + 4 + 84
    header = struct.pack("!BBBBHHIHBB", 1, 1, 1, 0, 0, length, 0x1001, 30, 1, 1)
    trailer = struct.pack("!HHIQQ32s", 0x800E, 84, 1, 0x186CC6ACD4B00001, 1, b"nve-a")
    signed = header + options + trailer
    made = signed + hmac_sha256(bytes(range(32)), signed)

    stored = load("registrations")["vectors"][0]
    assert stored["name"] == "first attach: request"
    assert stored["datagrams"] == [made.hex()]
    assert len(made) == length
