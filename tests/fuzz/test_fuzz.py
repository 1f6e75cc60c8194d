"""Every decoder: its kept corpus, its seeds, a bounded number of mutated inputs - and the proof
that a decoder that lets something out is found."""

from __future__ import annotations

import random

import pytest

import vmmobility.lab.logbook
from tests.fuzz import campaign
from tests.fuzz.campaign import TARGETS
from tests.fuzz.mutation import Mutator
from tests.fuzz.target import Target
from tests.fuzz.targets_store import journal, with_checksums
from vmmobility.engine.router import RouterEngine
from vmmobility.store import frames
from vmmobility.wire import formats, options

INPUTS = 2000  # for each target; a slow one gets a share


@pytest.mark.parametrize("name", TARGETS)
def test_any_octets_give_a_value_or_the_documented_error(name):
    target = TARGETS[name]
    enough = campaign.until(INPUTS * target.weight, float("inf"))
    found = campaign.run(target, campaign.mutated(target, 1), enough)
    assert not found.failures
    assert len(found.counts) > 1, "every input comes to the same end: nothing is tested"


def test_every_target_has_a_kept_corpus_and_every_corpus_a_target():
    folders = {path.name for path in campaign.CORPUS.iterdir()}
    assert folders == set(TARGETS)
    for name in TARGETS:
        assert campaign.kept(TARGETS[name]), name


def test_the_same_seed_makes_the_same_inputs():
    one, other = (campaign.mutated(TARGETS["wire-part"], 5) for _ in "ab")
    assert [next(one) for _ in range(200)] == [next(other) for _ in range(200)]


def test_mutations_change_something():
    chance = random.Random(1)
    mutator = Mutator(chance, [b'{"a": 1}\nb = 2\n' * 5], [b"x"], 1000)
    assert len({mutator.one() for _ in range(200)}) > 150


@pytest.mark.parametrize(
    ("name", "place"),
    [("wire-part", "member"), ("wire-options", "take_prefix"), ("wire-part", "take_words")],
)
def test_a_decoder_that_raises_something_else_is_found(name, place, monkeypatch):
    def careless(*_):
        raise IndexError(place)

    campaign.seeds_of(name)  # made, and kept, while every decoder is whole
    monkeypatch.setattr(formats, place, careless)
    target = TARGETS[name]
    found = campaign.run(target, campaign.mutated(target, 1), campaign.until(3000, 60))
    assert any("IndexError" in wrong for wrong in found.failures)


def test_a_decoder_that_changes_a_value_is_found(monkeypatch):
    """The second time an epoch is read it is another one."""
    row = options.BY_TYPE[5]
    forgetful = options.Declaration(
        row.number, row.name, row.must_understand, row.repeatable, row.octets, row.option,
        row.encode, lambda c: options.Epoch(c.uint(8) | 1 << 63),
    )  # fmt: skip
    monkeypatch.setitem(options.BY_TYPE, 5, forgetful)
    monkeypatch.setitem(options.BY_CLASS, options.Epoch, options.Declaration(
        row.number, row.name, row.must_understand, row.repeatable, row.octets, row.option,
        lambda o: (o.epoch >> 1).to_bytes(8, "big"), row.decode,
    ))  # fmt: skip
    target = TARGETS["wire-part"]
    found = campaign.run(target, campaign.mutated(target, 1), campaign.until(3000, 60))
    assert any("AssertionError" in wrong for wrong in found.failures)


def test_a_journal_that_invents_records_is_found(monkeypatch):
    monkeypatch.setattr(frames, "_checksum", lambda *_: 7)
    data = TARGETS["journal"].seeds()
    broken = [with_checksums(d) for d in data]
    monkeypatch.undo()
    monkeypatch.setattr(frames, "_frame_at", believing)
    with pytest.raises(AssertionError, match="was not written"):
        [journal(d) for d in broken]


def believing(data, offset, lowest, highest):
    """Takes a frame without looking at its checksum."""
    if offset + frames.FRAME_SIZE > len(data):
        return None
    length, _, sequence = frames._FRAME.unpack_from(data, offset)
    start = offset + frames.FRAME_SIZE
    if not (lowest <= sequence <= highest and 0 < length <= len(data) - start):
        return None
    return frames.Frame(offset, sequence, data[start : start + length])


def test_a_router_that_obeys_the_past_is_found(monkeypatch):
    ordered = RouterEngine._ordered

    def forgetful(self, received, now):
        for entry in self.entries.values():
            entry.epoch = 0
        ordered(self, received, now)

    monkeypatch.setattr(RouterEngine, "_ordered", forgetful)
    target = TARGETS["router"]
    found = campaign.run(target, campaign.mutated(target, 1), campaign.until(300, 60))
    assert any("AssertionError" in wrong for wrong in found.failures)


def test_an_input_that_takes_too_long_is_found(monkeypatch):
    monkeypatch.setattr(campaign, "SLOW_S", -1.0)
    assert campaign.failure_of(TARGETS["wire-part"], b"")[1].startswith("slow")


def test_an_input_that_never_ends_is_found(monkeypatch):
    def endless(_):
        while True:
            pass

    monkeypatch.setattr(campaign, "ENDLESS_S", 0.1)
    target = Target("endless", endless, lambda: [b""])
    assert campaign.failure_of(target, b"")[1].startswith("endless")


def test_a_failure_is_made_small_and_kept_in_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(campaign, "FAILURES", tmp_path)
    monkeypatch.setattr(vmmobility.lab.logbook, "LogEvent", lambda *_: [][1])
    assert campaign.main(["log-line", "--inputs", "50"]) == 1
    [path] = (tmp_path / "log-line").iterdir()
    assert len(path.read_bytes()) < 40
    assert "IndexError" in capsys.readouterr().out


def test_the_last_line_is_the_sum(capsys):
    assert campaign.main(["wire-seal", "--inputs", "500"]) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith("fuzz: 1 targets, 500 inputs, 0 failures, ")
    )
