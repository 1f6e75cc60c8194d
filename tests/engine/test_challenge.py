"""Peers that do not know each other: challenges, and boots that rise.

Not here: what is never believed (test_old_datagrams.py).
"""

from __future__ import annotations

from itertools import count

import pytest

from tests.engine.line import (
    ENDPOINTS,
    FIRST_S,
    OTHER,
    SECOND_SECRET,
    SECRET,
    End,
    Line,
    forged,
    messages,
    request,
)
from vmmobility.engine.challenge import FLOOR
from vmmobility.engine.channel import Received
from vmmobility.engine.outputs import Persist
from vmmobility.wire.authentication import read_seal
from vmmobility.wire.options import Nonce
from vmmobility.wire.registry import Kind, Purpose


def test_at_first_contact_each_proves_itself_to_the_other() -> None:
    line = Line()
    for one in line.ends.values():
        assert [e.name for e in one.events if e.name.startswith("peer.")] == [
            "peer.challenged", "peer.proven",
        ]  # fmt: skip
        mark = one.disk[f"mark/{OTHER[one.name]}"]
        assert mark == [one.peer.window.boot, one.peer.window.high]
        assert one.peer.window.boot > FLOOR
        assert not one.told, "nobody has lost anything"
    line.assert_they_speak()


def test_what_was_asked_before_is_sent_again_at_once() -> None:
    line = Line(start=False)
    line.nve.ask(0.0)
    line.manager.ask(0.0)
    line.settle()
    assert line.now == 0.0
    assert len(line.nve.replies) == len(line.manager.replies) == 1
    assert line.manager.channel.drops["unproven"] == 1


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("sender", OTHER)
def test_a_lost_challenge_or_answer_only_costs_time(sender: str, kind: Kind) -> None:
    line = Line(start=False)
    left = count(2, -1)
    line.lose = lambda name, message: (
        (name, message.kind, message.purpose) == (sender, kind, Purpose.CHALLENGE)
        and next(left) > 0
    )
    line.nve.ask(0.0)
    line.manager.ask(0.0)
    line.settle(5.0)
    assert len(line.nve.replies) == len(line.manager.replies) == 1
    line.assert_they_speak()


def test_a_silent_peer_is_asked_at_its_endpoints_in_turn() -> None:
    line = Line(start=False)
    line.flush(line.nve)
    targets = []
    for counter in range(1, 4):
        line.now += FIRST_S
        line.deliver("manager", forged("manager", request(), 5, counter))
        targets += [send.destination for send in line.flush(line.nve)]
    assert targets == [ENDPOINTS["manager"][n % 2] for n in (1, 2, 3)]
    asked = messages(line, "nve", Kind.REQUEST)
    assert len({m.find(Nonce) for m in asked}) == len({m.sequence for m in asked}) == 1


@pytest.mark.parametrize("asker", OTHER)
@pytest.mark.parametrize("name", OTHER)
def test_a_new_boot_is_proven_without_waiting(name: str, asker: str) -> None:
    line = Line()
    for times in range(1, 4):
        line.now += 1
        line.restart(name)
        line.ends[asker].ask(line.now)
        before = line.now
        line.settle()
        assert line.now == before
        assert len(line.ends[asker].replies) == times
        assert len(messages(line, OTHER[name], Kind.REQUEST)) == 1 + times
    line.assert_they_speak()
    assert not line.nve.told + line.manager.told, "nothing was lost"


# ---- lost state --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", OTHER)
def test_a_node_that_lost_its_state_comes_back_above_its_own_past(name: str, seed: int) -> None:
    line = Line()
    line.assert_they_speak()
    other = line.ends[OTHER[name]]
    known = other.peer.window.boot
    for times in range(1, 4):
        line.ends[name].seed = 1000 * seed + times
        line.restart(name, lost=True)
        line.ends[name].ask(line.now)
        line.settle(2.0)
        assert line.ends[name].told == ["own"] * times
        assert other.told == [name] * times
        assert other.peer.window.boot > known
        line.assert_they_speak()
        known = other.peer.window.boot


@pytest.mark.parametrize("name", OTHER)
def test_whoever_lost_its_state_knows_so_before_it_hears_anything_else(name: str) -> None:
    line = Line()
    line.assert_they_speak()
    line.now += 1
    other, own = line.ends[OTHER[name]], line.ends[name]
    line.lose = lambda sender, message: (
        sender == OTHER[name]
        and message.purpose is Purpose.CHALLENGE
        and message.kind is Kind.REQUEST
    )
    line.restart(name, lost=True)
    heard = len(own.requests)
    other.ask(line.now)
    act = line._act

    def listen(one: End, received: Received) -> None:
        assert one is not own or own.told == ["own"]
        act(one, received)

    line._act = listen  # type: ignore[method-assign]
    line.settle(5.0)
    assert len(own.requests) == heard + 1
    assert own.told == ["own"]
    line.lose = lambda sender, message: False
    line.settle(10.0)
    line.assert_they_speak()
    assert other.told == [name]


def test_both_may_lose_their_state() -> None:
    line = Line()
    line.assert_they_speak()
    line.restart("nve", lost=True)
    line.restart("manager", lost=True)
    line.settle()
    line.assert_they_speak()


def test_a_disk_that_was_set_back_is_noticed() -> None:
    line = Line()
    old = dict(line.nve.disk)
    line.restart("nve")
    line.assert_they_speak()
    line.nve.disk.clear()
    line.nve.disk.update(old)
    line.restart("nve")
    line.assert_they_speak()


def test_the_raised_boot_is_durable_before_it_is_used() -> None:
    line = Line()
    line.now += 1
    line.restart("nve", lost=True)
    for send in line.flush(line.nve):
        line.deliver("nve", send.data)
    challenge = line.flush(line.manager)
    for send in challenge:
        line.deliver("manager", send.data)
    [persist] = line.nve.outbox.flush()
    assert isinstance(persist, Persist)
    raised = dict(persist.changes)["boot/manager"]
    assert isinstance(raised, int)
    assert raised > line.manager.peer.window.boot
    assert not line.nve.outbox.flush(), "nothing leaves before that"
    line.nve.outbox.persisted(persist.number)
    assert {read_seal(s.data).boot for s in line.flush(line.nve)} == {raised}
    line.nve.disk.update(persist.changes)
    line.restart("nve")
    assert line.nve.channel.next_mark(line.nve.peer).boot > raised


def test_a_crash_before_the_raised_boot_is_durable_is_an_ordinary_start() -> None:
    line = Line()
    line.now += 1
    line.restart("nve", lost=True)
    for send in line.flush(line.nve):
        line.deliver("nve", send.data)
    for send in line.flush(line.manager):
        line.deliver("manager", send.data)
    line.restart("nve")
    line.nve.ask(line.now)
    line.settle(2.0)
    line.assert_they_speak()


def test_while_keys_rotate_either_is_good_for_challenges() -> None:
    line = Line()
    both = {1: SECRET, 2: SECOND_SECRET}
    line.now += 1
    line.restart("nve", lost=True)
    line.nve.channel.set_secrets("manager", dict(both), 2)
    line.manager.channel.set_secrets("nve", dict(both), 1)
    line.settle()
    assert {read_seal(data).key_id for data in line.datagrams("nve")} == {1, 2}
    line.assert_they_speak()
