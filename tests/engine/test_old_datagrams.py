"""What nobody believes: week-old datagrams, replayed and forged challenges, boots without room.

Not here: how peers get to know each other (test_challenge.py).
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest

from tests.engine.line import ENDPOINTS, FIRST_S, OTHER, RIGHTS, SECRET, Line, forged, request
from vmmobility.engine.challenge import FLOOR, HIGHEST_KNOWN, next_boot
from vmmobility.engine.channel import Channel, Peer, Retransmission
from vmmobility.engine.outputs import Outbox, Persist
from vmmobility.wire.authentication import MAX_BOOT, TRAILER, Seal, seal
from vmmobility.wire.message import Message, decode_part, encode_parts
from vmmobility.wire.options import KnownBoot, Nonce
from vmmobility.wire.registry import MAX_DATAGRAM, Kind, Purpose, Role, Status


def portrait(line: Line) -> object:
    """All that a channel holds and would keep, but for drops."""
    return [
        (
            dict(one.disk), one.peer.window.boot, one.peer.window.high, len(one.requests),
            len(one.replies), len(one.told), one.channel.next_timer(), dict(one.peer.replies),
        )
        for one in line.ends.values()
    ]  # fmt: skip


LOSSES = [(), ("nve",), ("manager",), ("nve", "manager")]


@pytest.mark.parametrize("lost", LOSSES)
def test_a_week_old_packet_is_refused_after_both_ends_restarted(lost: tuple[str, ...]) -> None:
    line = Line()
    line.assert_they_speak()
    old = list(line.sent)
    line.now += 7 * 86400.0
    for name in OTHER:
        line.restart(name, lost=name in lost)
    before = [len(one.requests) + len(one.replies) for one in line.ends.values()]
    for again in range(3):  # before, amid and after the challenges
        for name, send in old:
            line.now += FIRST_S
            line.deliver(name, send.data)
            if again:
                line.settle()
    after = [len(one.requests) + len(one.replies) for one in line.ends.values()]
    assert after == before
    line.assert_they_speak()


def test_replayed_challenges_change_nothing() -> None:
    line = Line()
    for name in OTHER:
        line.restart(name, lost=True)
        line.settle(1.0)
        line.assert_they_speak()
    old = list(line.sent)
    before = portrait(line)
    for name, send in old:
        line.now += FIRST_S
        receiver, sent = line.ends[OTHER[name]], len(line.sent)
        line.deliver(name, send.data)
        answers = line.flush(receiver)
        assert len(line.sent) - sent <= 2, "an answer and a question at most"
        assert sum(len(s.data) for s in answers) <= 3 * len(send.data)
    assert [one.outbox.flush() for one in line.ends.values()] == [[], []]
    assert portrait(line) == before
    line.assert_they_speak()


@pytest.mark.parametrize("lost", LOSSES)
def test_forged_challenges_change_nothing(lost: tuple[str, ...]) -> None:
    line = Line()
    for name in lost:
        line.ends[name].disk.clear()
        line.restart(name)
    for one in line.ends.values():
        line.flush(one)
    before, sent = portrait(line), len(line.sent)
    nonce = Nonce(bytes(16))
    for name in OTHER:
        for counter, message in enumerate(
            [
                request(nonce, KnownBoot(1 << 50), purpose=Purpose.CHALLENGE),
                Message(Kind.REPLY, Purpose.CHALLENGE, 7, (nonce, KnownBoot(0))),
            ],
            1 << 40,
        ):
            line.deliver(name, forged(name, message, 1 << 50, counter, bytes(32)))
    assert portrait(line) == before
    assert len(line.sent) == sent
    for one in line.ends.values():
        assert one.channel.drops["bad-digest"] == 2


def test_the_wrong_nonce_proves_nothing() -> None:
    line = Line(start=False)
    line.flush(line.manager)
    [send] = line.flush(line.nve)
    asked = decode_part(send.data, TRAILER).message
    nonce, known = asked.need(Nonce).nonce, KnownBoot(0)
    for counter, options in enumerate(
        ((), (Nonce(nonce),), (Nonce(bytes(16)), known), (Nonce(nonce[::-1]), known)), 1
    ):
        reply = Message(Kind.REPLY, Purpose.CHALLENGE, asked.sequence, options)
        line.deliver("manager", forged("manager", reply, FLOOR + 9, counter))
        assert line.nve.peer.window.boot == 0
    reply = Message(Kind.REPLY, Purpose.CHALLENGE, asked.sequence, (Nonce(nonce), known))
    line.deliver("manager", forged("manager", reply, FLOOR + 9, 9))
    assert (line.nve.peer.window.boot, line.nve.peer.window.high) == (FLOOR + 9, 9)
    assert line.nve.channel.drops == {"missing-option": 2, "unproven": 2}
    for counter in (8, 9):
        line.deliver("manager", forged("manager", request(), FLOOR + 9, counter))
    assert line.nve.channel.drops["replayed"] == 2, "what it said before counts as seen"


def test_an_answer_under_an_older_boot_is_refused() -> None:
    line = Line()
    line.now += 1
    boot = line.nve.peer.window.boot
    line.deliver("manager", forged("manager", request(), boot - 1, 1))
    [send] = line.flush(line.nve)
    asked = decode_part(send.data, TRAILER).message
    assert asked.need(KnownBoot).boot == boot
    reply = Message(
        Kind.REPLY, Purpose.CHALLENGE, asked.sequence, (asked.need(Nonce), KnownBoot(0))
    )
    line.deliver("manager", forged("manager", reply, boot - 1, 2))
    assert line.nve.peer.window.boot == boot
    assert line.nve.channel.drops == {"old-boot": 2}


def test_a_peer_is_asked_no_more_often_than_requests_are_repeated() -> None:
    line = Line()
    line.now += 1
    boot = line.nve.peer.window.boot
    for counter in range(1000):
        line.now += 0.001
        line.deliver("manager", forged("manager", request(), boot - 1, counter))
    assert len(line.flush(line.nve)) == 4
    assert line.nve.channel.drops == {"old-boot": 1000}


def test_repeated_challenges_do_not_repeat_requests_more_often_either() -> None:
    line = Line(start=False)
    line.flush(line.nve)
    line.nve.ask(0.0)
    line.flush(line.nve)
    options = (Nonce(bytes(16)), KnownBoot(0))
    challenge = request(*options, purpose=Purpose.CHALLENGE)
    for counter in range(1, 1001):
        line.now += 0.001
        line.deliver("manager", forged("manager", challenge, 5, counter))
    sent = [decode_part(s.data, TRAILER).message for s in line.flush(line.nve)]
    kinds = [(m.purpose, m.kind) for m in sent]
    assert kinds.count((Purpose.CHALLENGE, Kind.REPLY)) == 1000
    assert kinds.count((Purpose.CHALLENGE, Kind.REQUEST)) <= 4
    assert kinds.count((Purpose.REFRESH, Kind.REQUEST)) <= 4


def test_a_boot_that_leaves_no_room_is_refused() -> None:
    line = Line()
    boot = line.manager.peer.window.boot
    before = line.nve.channel.next_mark(line.nve.peer)
    for counter, known in enumerate((HIGHEST_KNOWN + 1, MAX_BOOT, (1 << 64) - 1), 50):
        message = request(Nonce(bytes(16)), KnownBoot(known), purpose=Purpose.CHALLENGE)
        line.deliver("manager", forged("manager", message, line.nve.peer.window.boot, counter))
    assert line.nve.channel.drops == {"bad-value": 3}
    assert not line.flush(line.nve)
    assert line.nve.channel.next_mark(line.nve.peer).boot == before.boot == boot


def test_a_lying_peer_spoils_its_own_boots_only() -> None:
    outbox, chance = Outbox(), random.Random(1)
    peers = [Peer(name, Role.NVE, ENDPOINTS["nve"], {1: SECRET}, 1) for name in ("liar", "honest")]
    channel = Channel("manager", 1, peers, RIGHTS, outbox, chance, Retransmission())
    channel.restore({"mark/liar": [FLOOR + 1, 0], "mark/honest": [FLOOR + 1, 0]})
    message = request(Nonce(bytes(16)), KnownBoot(HIGHEST_KNOWN), purpose=Purpose.CHALLENGE)
    channel.datagram(forged("liar", message, FLOOR + 1, 1), ENDPOINTS["nve"][0], None, 0.0)
    assert channel.next_mark(peers[0]).boot > HIGHEST_KNOWN
    assert channel.next_mark(peers[1]).boot == channel.boot == 1
    [persist] = [o for o in outbox.flush() if isinstance(o, Persist)]
    disk = dict(persist.changes)
    for _ in range(300):  # starts: it stays within 63 bits, whatever becomes of the liar's
        again = Channel("manager", 2, peers, RIGHTS, outbox, chance, Retransmission())
        again.restore(disk)
        assert again.next_mark(peers[0]).boot <= MAX_BOOT
        [persist] = [o for o in outbox.flush() if isinstance(o, Persist)] or [persist]
        outbox.persisted(persist.number)
        disk |= dict(persist.changes)


def test_a_challenge_of_another_version_is_told_which_is_spoken() -> None:
    line = Line(start=False)
    line.flush(line.nve)
    [body] = encode_parts(
        request(Nonce(bytes(16)), KnownBoot(0), purpose=Purpose.CHALLENGE), MAX_DATAGRAM, TRAILER
    )
    line.deliver("manager", seal(b"\2" + body[1:], Seal("manager", 1, 5, 1), SECRET))
    [send] = line.flush(line.nve)
    assert decode_part(send.data, TRAILER).message.status is Status.UNSUPPORTED_VERSION


def test_no_two_starts_have_the_same_boot() -> None:
    chance = random.Random(1)
    assert len({next_boot(0, chance) for _ in range(1000)}) == 1000
    assert all(5 < next_boot(5, chance) <= 5 + FLOOR for _ in range(1000))
    assert next_boot(MAX_BOOT, chance) == MAX_BOOT


class Witness(Line):
    """Counts how often each datagram was heard: as a request to act on, or as a reply."""

    def __init__(self) -> None:
        self.heard: Counter[bytes] = Counter()
        super().__init__()

    def deliver(self, sender: str, data: bytes) -> None:
        receiver = self.ends[OTHER[sender]]
        before = len(receiver.requests) + len(receiver.replies)
        super().deliver(sender, data)
        self.heard[data] += len(receiver.requests) + len(receiver.replies) - before


def _is_lost(chance: random.Random, loss: float, sender: str, message: Message) -> bool:
    return chance.random() < loss


@pytest.mark.parametrize("seed", range(60))
def test_no_datagram_is_ever_heard_twice(seed: int) -> None:
    """Whatever restarts, is lost, installed anew, replayed and repeated, in any order."""
    chance, line = random.Random(seed), Witness()
    for _ in range(200):
        one = chance.choice(list(line.ends.values()))
        what = chance.choice(("ask", "ask", "settle", "replay", "replay", "weather", "end"))
        if what == "ask":
            one.ask(line.now)
        elif what == "settle":
            line.settle(chance.uniform(0.0, 2.0))
        elif what == "replay":
            name, send = chance.choice(line.sent)
            line.deliver(name, send.data)
            line.settle()  # what is not yet durable when a node dies was never heard
        elif what == "weather":
            loss = chance.choice((0.0, 0.3, 0.9))
            line.lose = partial(_is_lost, chance, loss)
        elif chance.random() < 0.3:
            line.restart(one.name, lost=chance.random() < 0.5)
    line.lose = lambda name, message: False
    line.settle(20.0)
    assert all(one.channel.next_timer() is None for one in line.ends.values())
    line.assert_they_speak()
    assert max(line.heard.values()) == 1
