"""A short `make forge`, and the proof that it would see: each broken engine is found out."""

from __future__ import annotations

import random

import pytest

from tests.forge import campaign
from tests.forge.domain import Domain
from tests.forge.shots import Arsenal
from vmmobility.engine import channel, manager, nve, router
from vmmobility.engine.challenge import Challenges
from vmmobility.engine.channel import Channel
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.nve import NveEngine
from vmmobility.engine.replay_window import ReplayWindow
from vmmobility.engine.router import RouterEngine
from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import open_sealed, read_seal
from vmmobility.wire.options import Sight
from vmmobility.wire.registry import Purpose, Role

MESSAGES = 10_000  # for each seed
EVERYBODY = {purpose: frozenset(Role) for purpose in Purpose}


@pytest.mark.parametrize("seed", [3, 4])
def test_no_message_without_the_right_changes_anything(seed):
    tally = campaign.attack(seed, MESSAGES)
    assert not tally.changes, "\n".join(tally.changes)
    # What a router tells unasked changes the story a little: its end may come before the last few.
    assert tally.messages >= 0.99 * MESSAGES
    silent = {"bad-digest", "replayed", "old-boot", "unproven", "unknown-key", "truncated"}
    assert silent < {outcome for _, outcome in tally.outcomes}
    phases = {"SERVING", "PREPARED", "COPYING", "DELIVERING", "SWITCHED", "REDIRECTING"}
    routes = {f"route {state}" for state in ("NONE", "WATCH", "LEAD", "ANNOUNCE")}
    assert phases | routes < set(tally.standings), "the story does not come by there any more"
    of_routers = {"past route", "past sight", "unasked sight", "nve at default_router"}
    assert of_routers < set(tally.fired)


def unchecked_digest(monkeypatch):
    monkeypatch.setattr(channel, "open_sealed", lambda data, secret_of: known(data, secret_of))


def known(data, secret_of):
    mark = read_seal(data)
    if secret_of(mark.sender, mark.key_id) is None:
        raise DecodeError("unknown-key", "")
    return mark


def unchecked_replay(monkeypatch):
    monkeypatch.setattr(ReplayWindow, "check", lambda *_: None)


def a_window_that_a_restart_empties(monkeypatch):
    monkeypatch.setattr(ReplayWindow, "__init__", empty_window)


def empty_window(window, boot=0, high=0):
    window.boot, window.high, window._seen = boot, high, 0


def unproven_peers_believed(monkeypatch):
    check = ReplayWindow.check
    monkeypatch.setattr(
        ReplayWindow, "check", lambda w, b, c: None if not w.boot else check(w, b, c)
    )


def any_answer_is_proof(monkeypatch):
    monkeypatch.setattr(Challenges, "is_answered", lambda asked, peer, _: peer in asked._standings)


def everybody_may_order_an_nve(monkeypatch):
    monkeypatch.setattr(nve, "RIGHTS", EVERYBODY)


def everybody_may_register(monkeypatch):
    monkeypatch.setattr(manager, "RIGHTS", {**manager.RIGHTS, **EVERYBODY})


def any_name_may_be_attached_under(monkeypatch):
    monkeypatch.setattr(ManagerEngine, "_refusal", lambda *_: None)


def epochs_of_the_past_count(monkeypatch):
    monkeypatch.setattr(NveEngine, "_stale", staticmethod(lambda *_: False))


def other_moves_tickets_count(monkeypatch):
    monkeypatch.setattr(NveEngine, "_of_another_move", staticmethod(lambda *_: False))


def everybody_may_tell_a_router(monkeypatch):
    monkeypatch.setattr(router, "RIGHTS", EVERYBODY)


def routes_of_the_past_count(monkeypatch):
    ordered = RouterEngine._ordered

    def forgetful(self, received, now):
        entry = self.entries.get(received.message.vm)
        if entry is not None:
            entry.epoch = 0
        ordered(self, received, now)

    monkeypatch.setattr(RouterEngine, "_ordered", forgetful)


def sights_of_the_past_count(monkeypatch):
    sighted = ManagerEngine._sighted

    def believing(self, received, now):
        sighted(self, received, now)
        entry = self._fabric.get(received.message.vm)
        told = entry.routers.get(received.peer.node_id) if entry else None
        if told is not None:
            told.direct = received.message.need(Sight).direct

    monkeypatch.setattr(ManagerEngine, "_sighted", believing)


def a_decoder_that_raises_what_it_likes(monkeypatch):
    """A fault that is no change: an exception out of an engine."""
    monkeypatch.setattr(channel, "open_sealed", lambda data, s: (data[50], open_sealed(data, s))[1])


def drops_that_leave_traces(monkeypatch):
    """A change that nothing emitted shows: only the portraits do."""
    drop = Channel._drop

    def forgetful(self, reason, who):
        drop(self, reason, who)
        if reason == "bad-digest":
            for peer in self.peers.values():
                peer.role = Role.MANAGER

    monkeypatch.setattr(Channel, "_drop", forgetful)


@pytest.mark.parametrize(
    "mutant",
    [
        unchecked_digest, unchecked_replay, a_window_that_a_restart_empties,
        unproven_peers_believed, any_answer_is_proof, everybody_may_order_an_nve,
        everybody_may_register, any_name_may_be_attached_under, epochs_of_the_past_count,
        other_moves_tickets_count, everybody_may_tell_a_router, routes_of_the_past_count,
        sights_of_the_past_count,
        a_decoder_that_raises_what_it_likes, drops_that_leave_traces,
    ],
)  # fmt: skip
def test_a_broken_engine_is_found_out(mutant, monkeypatch):
    mutant(monkeypatch)
    tallies = (campaign.attack(seed, MESSAGES) for seed in (1, 2, 3))
    tally = next((found for found in tallies if found.changes), None)
    assert tally is not None
    assert "octets" in tally.changes[0], "the message is not shown"


def test_the_same_seed_fires_the_same():
    one, other = campaign.attack(3, 500), campaign.attack(3, 500)
    assert (one.fired, one.outcomes) == (other.fired, other.outcomes)


def test_the_report_ends_with_the_sum_and_the_exit_tells_of_changes(monkeypatch, capsys):
    assert campaign.main(["300", "--processes", "1"]) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith("forge: 300 messages, 0 state changes, ")
    )
    unchecked_replay(monkeypatch)
    assert campaign.main(["3000", "--processes", "1"]) == 1
    assert ", 1 state changes, " in capsys.readouterr().out.splitlines()[-1]


def test_every_kind_of_shot_is_fired():
    tally = campaign.attack(4, 3000)
    assert set(Arsenal(Domain(), random.Random(1)).kinds) <= set(tally.fired)
