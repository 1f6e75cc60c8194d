"""The channel: seals, replay, rights, replies kept, parts, subjects, retransmission.

Not here: peers that do not know each other (test_challenge.py).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from tests.engine.line import carried_out
from vmmobility.engine.channel import Channel, Peer, Received, Retransmission
from vmmobility.engine.outputs import Endpoint, Outbox, Send
from vmmobility.wire.authentication import TRAILER, Seal, read_seal, seal
from vmmobility.wire.message import Message, decode_part, encode_parts
from vmmobility.wire.options import (
    Definition,
    Epoch,
    Option,
    Reason,
    Supported,
    UnknownOption,
    VmId,
)
from vmmobility.wire.registry import MAX_DATAGRAM, VERSION, Kind, Purpose, Role, Status
from vmmobility.wire.values import VmKey

NVE, MANAGER = Endpoint(ip_address("10.0.1.2"), 8747), Endpoint(ip_address("10.0.9.2"), 8747)
SECOND = Endpoint(ip_address("fd00::9"), 8747)
ASKED = ip_address("10.0.9.2")
SECRET = bytes(range(32))
VM = VmId(VmKey(0, "vm1"))
RIGHTS = {Purpose.REFRESH: frozenset({Role.NVE})}


@dataclass
class End:
    """A channel with one peer; whatever it records is durable at once."""

    channel: Channel
    outbox: Outbox
    peer: Peer
    disk: dict[str, object] = field(default_factory=dict)

    def sent(self) -> list[Send]:
        outputs = carried_out(self.outbox, self.disk)
        return [output for output in outputs if isinstance(output, Send)]

    def take(self, data: bytes, now: float = 0.0) -> Received | None:
        return self.channel.datagram(data, NVE, ASKED, now)


def an_end(own: str, other: str, role: Role, *endpoints: Endpoint, boot: int = 1) -> End:
    outbox = Outbox()
    peer = Peer(other, role, endpoints, {1: SECRET}, 1)
    channel = Channel(own, boot, [peer], RIGHTS, outbox, random.Random(own), Retransmission())
    channel.restore({f"mark/{other}": [1, 0]})
    return End(channel, outbox, peer)


@pytest.fixture
def manager() -> End:
    return an_end("manager", "nve-a", Role.NVE, NVE)


@pytest.fixture
def nve() -> End:
    return an_end("nve-a", "manager", Role.MANAGER, MANAGER, SECOND)


def request(nve: End, *options: Option, purpose: Purpose = Purpose.REFRESH) -> list[bytes]:
    replies: list[Message] = []
    nve.channel.request(
        nve.peer, purpose, [VM, *options], 0.0, lambda reply, now: replies.append(reply)
    )
    return [send.data for send in nve.sent()]


def read(send: Send) -> Message:
    return decode_part(send.data, TRAILER).message


def resealed(data: bytes, **changes: object) -> bytes:
    """The same message under another mark or secret."""
    mark = read_seal(data)
    given = {"sender": mark.sender, "key_id": 1, "boot": mark.boot, "counter": mark.counter + 100}
    secret = changes.pop("secret", SECRET)
    assert isinstance(secret, bytes)
    return seal(data[:-TRAILER], Seal(**{**given, **changes}), secret)  # type: ignore[arg-type]


def test_an_authentic_request_is_whole_and_says_where_it_was_asked(manager: End, nve: End) -> None:
    [data] = request(nve)
    received = manager.take(data)
    assert received is not None
    assert (received.message.vm, received.source, received.local) == (VM.vm, NVE, ASKED)
    manager.channel.reply(received, Status.ACCEPTED)
    [reply] = manager.sent()
    assert (reply.destination, reply.source) == (NVE, ASKED), "from the address that was asked"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"secret": bytes(32)}, "bad-digest"),
        ({"key_id": 2}, "unknown-key"),
        ({"sender": "nve-b"}, "unknown-key"),
        ({"sender": "manager"}, "unknown-key"),
    ],
)
def test_what_is_not_authentic_changes_nothing(
    manager: End, nve: End, changes: dict[str, object], why: str
) -> None:
    [data] = request(nve)
    assert manager.take(resealed(data, **changes)) is None
    assert manager.channel.drops == {why: 1}
    assert not manager.sent()
    assert not manager.disk


def test_a_replay_is_dropped_in_silence_also_after_a_restart(manager: End, nve: End) -> None:
    [data] = request(nve)
    assert manager.take(data)
    assert manager.take(data) is None
    assert manager.channel.drops == {"replayed": 1}
    assert not manager.sent()
    assert manager.disk == {"mark/nve-a": [1, 1]}
    again = an_end("manager", "nve-a", Role.NVE, NVE, boot=2)
    again.channel.restore(manager.disk)
    assert again.take(data) is None
    assert again.channel.drops == {"replayed": 1}


@pytest.mark.parametrize(("boot", "why"), [(4, "old-boot"), (6, "unproven")])
def test_another_boot_than_that_on_record_is_dropped(
    manager: End, nve: End, boot: int, why: str
) -> None:
    [data] = request(nve)
    manager.channel.restore({"mark/nve-a": [5, 0]})
    assert manager.take(resealed(data, boot=boot, counter=999)) is None
    assert manager.channel.drops == {why: 1}
    [asked] = manager.sent()
    assert read(asked).purpose is Purpose.CHALLENGE
    assert manager.take(resealed(data, boot=5))


def test_a_role_without_the_right_is_refused(manager: End, nve: End) -> None:
    [data] = request(nve, purpose=Purpose.REDIRECT)
    assert manager.take(data) is None
    [reply] = manager.sent()
    assert read(reply).status is Status.ADMINISTRATIVELY_PROHIBITED
    assert manager.channel.drops == {"wrong-role": 1}


def test_an_unknown_version_is_told_which_is_spoken(manager: End, nve: End) -> None:
    [data] = request(nve)
    assert manager.take(resealed(bytes([9]) + data[1:])) is None
    [reply] = manager.sent()
    assert read(reply).status is Status.UNSUPPORTED_VERSION
    assert read(reply).find(Supported) == Supported((VERSION,))


def test_an_unknown_option_that_must_be_understood_is_named(manager: End, nve: End) -> None:
    [data] = request(nve, UnknownOption(0x8000 | 999, b"x"))
    assert manager.take(data) is None
    [reply] = manager.sent()
    assert read(reply).status is Status.UNSUPPORTED_OPTION
    assert read(reply).find(Supported) == Supported((999,))


def test_an_unknown_option_that_need_not_is_kept(manager: End, nve: End) -> None:
    [data] = request(nve, UnknownOption(999, b"x"))
    received = manager.take(data)
    assert received
    assert received.message.find(UnknownOption) == UnknownOption(999, b"x")


def test_what_is_authentic_but_malformed_is_answered(manager: End, nve: End) -> None:
    [data] = request(nve)
    body = data[:-TRAILER] + b"\x80\x01"  # an option without its length
    length = (len(body) + TRAILER).to_bytes(2, "big")
    assert manager.take(resealed(body[:6] + length + body[8:] + data[-TRAILER:])) is None
    [reply] = manager.sent()
    assert read(reply).status is Status.MALFORMED


def test_a_repeated_request_gets_its_reply_again_under_a_fresh_counter(
    manager: End, nve: End
) -> None:
    [data] = request(nve)
    received = manager.take(data)
    assert received
    assert manager.take(resealed(data)) is None, "while it is worked on"
    assert not manager.sent()
    manager.channel.reply(received, Status.ACCEPTED, reason="fine")
    [first] = manager.sent()
    assert manager.take(resealed(data, counter=500)) is None
    [second] = manager.sent()
    assert read(first) == read(second)
    assert read_seal(first.data).counter < read_seal(second.data).counter
    assert manager.channel.drops == {"repeated-request": 2}


def test_parts_in_any_order_are_one_message(manager: End, nve: End) -> None:
    parts = request(nve, *(Definition(bytes([65 + n]) * 1000) for n in range(3)))
    assert len(parts) == 3
    assert manager.take(parts[2]) is None
    assert manager.take(parts[0]) is None
    received = manager.take(parts[1])
    assert received
    assert received.message.definition == b"A" * 1000 + b"B" * 1000 + b"C" * 1000


def test_a_message_without_all_its_parts_is_nothing(manager: End, nve: End) -> None:
    first, _ = request(nve, *(Definition(b"x" * 1000) for _ in range(2)))
    assert manager.take(first) is None
    assert not manager.sent()


def test_too_long_or_too_short_is_dropped(manager: End) -> None:
    assert manager.take(bytes(MAX_DATAGRAM + 1)) is None
    assert manager.take(b"") is None
    assert manager.channel.drops == {"too-long": 1, "truncated": 1}


def test_a_newer_request_of_the_subject_supersedes(manager: End, nve: End) -> None:
    heard: list[str] = []

    def ask(word: str) -> None:
        nve.channel.request(
            nve.peer, Purpose.REFRESH, [VM], 0.0, lambda reply, now: heard.append(word), subject="s"
        )

    ask("old")
    ask("new")
    old, new = nve.sent()
    for send in (old, new):
        received = manager.take(send.data)
        assert received
        manager.channel.reply(received, Status.ACCEPTED)
    for send in manager.sent():
        nve.channel.datagram(send.data, MANAGER, None, 0.0)
    assert heard == ["new"]
    assert nve.channel.drops == {"unexpected-reply": 1}
    assert nve.channel.next_timer() is None


def test_it_repeats_with_back_off_and_jitter_to_each_endpoint_in_turn(nve: End) -> None:
    request(nve)
    times, targets, last = [], [], 0.0
    for _ in range(10):
        due = nve.channel.next_timer()
        assert due is not None
        nve.channel.timer(due)
        [send] = nve.sent()
        times.append(due - last)
        targets.append(send.destination)
        last = due
    nominal = [0.25, 0.5, 1, 2, 4, 8, 8, 8, 8, 8]
    assert all(0.8 * n <= t <= 1.2 * n for n, t in zip(nominal, times, strict=True))
    assert len({round(t / n, 6) for n, t in zip(nominal, times, strict=True)}) == 10, "jitter"
    assert targets[:4] == [SECOND, MANAGER, SECOND, MANAGER]


def test_a_repetition_keeps_its_sequence_and_takes_a_fresh_counter(nve: End) -> None:
    [first] = request(nve)
    nve.channel.timer(1.0)
    [second] = nve.sent()
    assert first[:-TRAILER] == second.data[:-TRAILER]
    assert read_seal(first).counter < read_seal(second.data).counter


def test_a_reply_of_another_purpose_or_nobody_asked_for_is_ignored(nve: End) -> None:
    [data] = request(nve)
    sequence = decode_part(data, TRAILER).message.sequence
    for counter, (purpose, number) in enumerate(
        [(Purpose.ATTACH, sequence), (Purpose.REFRESH, sequence + 1)], 1
    ):
        message = Message(Kind.REPLY, purpose, number, (Reason("x"),))
        [body] = encode_parts(message, MAX_DATAGRAM, TRAILER)
        forged = seal(body, Seal("manager", 1, 1, counter), SECRET)
        nve.channel.datagram(forged, MANAGER, None, 0.0)
    assert nve.channel.drops == {"unexpected-reply": 2}
    assert nve.channel.next_timer() is not None


def test_while_keys_rotate_both_are_taken(manager: End, nve: End) -> None:
    new = bytes(32)
    manager.channel.set_secrets("nve-a", {1: SECRET, 2: new}, 1)
    [data] = request(nve)
    assert manager.take(data)
    nve.channel.set_secrets("manager", {1: SECRET, 2: new}, 2)
    [data] = request(nve)
    assert read_seal(data).key_id == 2
    assert manager.take(data)
    manager.channel.set_secrets("nve-a", {2: new}, 2)
    nve.channel.set_secrets("manager", {1: SECRET}, 1)
    [data] = request(nve)
    assert manager.take(data) is None
    assert manager.channel.drops == {"unknown-key": 1}


def test_a_reply_that_says_nothing_leaves_the_request_asked(manager: End, nve: End) -> None:
    heard: list[int] = []
    nve.channel.request(
        nve.peer, Purpose.REFRESH, [VM], 0.0, lambda reply, now: heard.append(reply.epoch),
        subject="s",
    )  # fmt: skip
    [asked] = nve.sent()
    received = manager.take(asked.data)
    assert received
    for options in ((), (Epoch(7),)):
        manager.channel.reply(received, Status.ACCEPTED, options)
        [reply] = manager.sent()
        nve.channel.datagram(reply.data, MANAGER, None, 0.0)
        assert nve.channel.is_asking(nve.peer, "s") is not bool(options)
    assert heard == [7]
    assert nve.channel.drops == {"missing-option": 1}
    assert nve.channel.next_timer() is None


def test_a_reply_that_says_nothing_does_not_bring_back_a_superseded_request(
    manager: End, nve: End
) -> None:
    def ask_again(reply: Message, now: float) -> None:
        nve.channel.request(nve.peer, Purpose.REFRESH, [VM], now, ask_again, subject="s")
        reply.need(Epoch)

    nve.channel.request(nve.peer, Purpose.REFRESH, [VM], 0.0, ask_again, subject="s")
    [asked] = nve.sent()
    received = manager.take(asked.data)
    assert received
    manager.channel.reply(received, Status.ACCEPTED)
    [reply] = manager.sent()
    nve.channel.datagram(reply.data, MANAGER, None, 0.0)
    nve.sent()
    nve.channel.timer(1.0)
    assert len(nve.sent()) == 1


def test_each_peer_has_a_counter_of_its_own() -> None:
    outbox = Outbox()
    peers = [Peer(name, Role.NVE, (NVE,), {1: SECRET}, 1) for name in ("a", "b")]
    channel = Channel("m", 1, peers, RIGHTS, outbox, random.Random(1), Retransmission())
    for peer in (*peers, *peers):
        channel.request(peer, Purpose.REFRESH, [VM], 0.0, lambda reply, now: None)
    counters = [read_seal(s.data).counter for s in outbox.flush() if isinstance(s, Send)]
    assert counters == [1, 1, 2, 2], "what goes to others leaves no gaps in a peer's window"
