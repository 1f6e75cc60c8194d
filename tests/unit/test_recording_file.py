"""A recording's file: values, ends of all kinds, damage, and how it begins."""

from __future__ import annotations

import errno
import json
import os
import random
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conversation import interfaces_of
from tests.engine.network import MANAGER
from tests.unit.recorded_world import (
    VM,
    RecordedWorld,
    replayed,
)
from vmmobility.daemon.recording import codec
from vmmobility.daemon.recording.inputs import Origin
from vmmobility.daemon.recording.randomness import SEED, SeededRandom
from vmmobility.daemon.recording.reading import NO_END, TORN
from vmmobility.daemon.recording.recorder import NotRecording, Recorder, open_recorder
from vmmobility.drivers.dataplane import Traffic
from vmmobility.engine.outputs import Endpoint, Order
from vmmobility.errors import ConfigError, RecordingError
from vmmobility.wire.registry import Role
from vmmobility.wire.values import Interface, Nve, VmKey

# ---- the file, and its ends -----------------------------------------------------------------


def test_a_torn_last_line_is_read_up_to_there(moved: RecordedWorld, tmp_path: Path):
    whole = (moved.folder / "a-1.jsonl").read_bytes()
    path = tmp_path / "torn"
    counts = []
    for length in range(len(whole) // 2, len(whole), len(whole) // 60):
        path.write_bytes(whole[:length])
        run = replayed(path)
        assert run.difference is None
        assert run.recording.ending == (NO_END if whole[length - 1 : length] == b"\n" else TORN)
        counts.append(run.inputs)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0] > 0


def test_the_size_limit_ends_it_with_an_event(tmp_path: Path):
    world = RecordedWorld(tmp_path, most_octets=20_000)
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(3000)
    engine = world.nodes["a"].edge
    assert engine is not None
    assert engine.entries[VM].phase.name == "SERVING"
    stopped = {
        Path(d["file"]).stem: d["reason"] for n, d in world.notes if n == "recording.stopped"
    }
    assert set(stopped) == {MANAGER + "-1", "a-1"}
    for name, reason in stopped.items():
        path = world.folder / f"{name}.jsonl"
        assert 15_000 < path.stat().st_size < 20_000 + 200
        assert (
            replayed(path).recording.ending == reason == "the recording has reached its size limit"
        )
    world.close()


def test_a_full_disk_ends_the_recording_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    room = [30_000]
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = write(descriptor, bytes(data[: room[0]]))
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", full)
    world = RecordedWorld(tmp_path)
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(300)
    stopped = [detail for name, detail in world.notes if name == "recording.stopped"]
    assert {detail["reason"] for detail in stopped} == {
        f"it cannot be written: {os.strerror(errno.ENOSPC)}"
    }
    engine = world.nodes["a"].edge
    assert engine is not None
    assert engine.entries[VM].phase.name == "SERVING"
    for detail in stopped:
        run = replayed(Path(detail["file"]))
        assert (run.difference, run.recording.ending) == (None, NO_END)
    world.close()


class Odd:
    """Of a type that no recording knows."""


@pytest.mark.parametrize(
    "value", [Odd(), Role.NVE, {"x": Odd()}, [Odd()], {VM: Odd()}, Order, object()]
)
def test_an_unknown_type_is_refused_and_ends_the_recording_alone(
    world: RecordedWorld, value: object
):
    with pytest.raises(TypeError):
        codec.text(codec.argument(value))
    edge = world.nodes["a"].edge
    assert edge is not None
    edge.order_done(VM, Order.PAUSE, value, "", world.now)  # type: ignore[arg-type]
    (stopped,) = [detail for name, detail in world.notes if name == "recording.stopped"]
    assert "has no place in a recording" in stopped["reason"]
    world.run(1)
    assert replayed(Path(stopped["file"])).difference is None


@pytest.mark.parametrize(
    "value",
    [
        VM,
        VmKey(7, "vm\ud800"),
        b"\0\xff",
        (Interface(b"\2\0\0\0\0\1", (ip_network("10.0.0.1/32"), ip_network("fd00::/64"))),),
        [Nve("a", None, ip_address("fd00::1")), None, 1.5, True],  # type: ignore[arg-type]
        Endpoint(ip_address("10.0.0.1"), 8747),
        Endpoint(ip_address("fd00::1"), 8747),
        {VM: Traffic(1, 2, 3, 4), VmKey(1, "vm2"): Traffic()},
        {"$VmKey": 1, "plain": [1, {"a": None}]},
        {"$x": 1},
        {},
        Order.PAUSE,
        {VM: b"{}"},
        # Named, for its order and so its repr differ from run to run.
        pytest.param(frozenset({"a", "b"}), id="frozenset"),
        2**64,
    ],
    ids=repr,
)
def test_values_survive(value: Any):
    found = codec.value_of(json.loads(codec.text(codec.argument(value))))
    assert found == value
    assert type(found) in (type(value), set)


def damage(whole: bytes, chance: random.Random) -> bytes:
    """The file with one thing wrong somewhere."""
    lines = whole.splitlines(keepends=True)
    if chance.random() < 0.5:  # well formed, and yet not what was
        number = chance.randrange(1, len(lines) - 1)
        figures = [at for at, octet in enumerate(lines[number]) if octet in b"123456789"]
        at = chance.choice(figures or [0])
        line = lines[number]
        lines[number] = line[:at] + (b"7" if line[at : at + 1] != b"7" else b"8") + line[at + 1 :]
        return b"".join(lines)
    number = chance.randrange(len(lines))
    line = lines[number]
    at = chance.randrange(len(line))
    lines[number] = chance.choice((
        b"",
        line * 2,
        line[:at] + bytes([chance.randrange(256)]) + line[at + 1 :],
        line[:at] + line[at + 1 :],
        b"null\n",
        b'{"t":1,"input":"__init__","with":{}}\n',
        b'{"t":1,"input":"timer","with":{"x":1}}\n',
        b'{"t":null,"input":"persisted","with":{"number":{"$VmKey":{}}}}\n',
        b'{"input":[]}\n',
        line.replace(b"$", b"$$"),
        line.replace(b":", b":[", 1),
        b"[" * 100_000 + b"\n",
        lines[chance.randrange(len(lines))],
    ))  # fmt: skip
    return b"".join(lines)


def test_a_damaged_file_is_a_clear_error_or_a_difference(moved: RecordedWorld, tmp_path: Path):
    wholes = [(moved.folder / name).read_bytes() for name in ("a-1.jsonl", f"{MANAGER}-2.jsonl")]
    seen = {"difference": 0, "same": 0}
    refusals: list[RecordingError] = []
    path = tmp_path / "damaged"
    for seed in range(250):
        path.write_bytes(damage(wholes[seed % 2], random.Random(seed)))
        try:
            run = replayed(path)
        except RecordingError as error:
            refusals.append(error)
        else:
            seen["same" if run.difference is None else "difference"] += 1
    seen["error"] = len(refusals)
    assert all(str(path) in refusal.message and refusal.remedy for refusal in refusals)
    assert min(seen["error"], seen["difference"]) > 20, seen


@pytest.mark.parametrize(
    "text", ["", "\n", "{}", "[]\n", "\0\xff", '{"format":"vmmobility recording"}\n', "x" * 10_000]
)
def test_a_foreign_file_is_refused_with_a_remedy(tmp_path: Path, text: str):
    path = tmp_path / "foreign"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RecordingError) as refused:
        replayed(path)
    assert str(path) in refused.value.message
    assert refused.value.remedy


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(RecordingError, match="No such file"):
        replayed(tmp_path / "none")


# ---- beginning ------------------------------------------------------------------------------


def origin(world: RecordedWorld) -> Origin:
    engine = world.nodes["a"].edge
    assert engine is not None
    return Origin(Role.NVE, engine.settings, [world._peer("a", MANAGER)], {}, 42, 0.0)


def silent(name: str, **detail: Any) -> None: ...


def test_a_file_is_its_owners_alone_and_never_overwritten(world: RecordedWorld, tmp_path: Path):
    path = tmp_path / "x"
    recorder = open_recorder(path, 1 << 20, origin(world), silent)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="exists already") as refused:
        open_recorder(path, 1 << 20, origin(world), silent)
    assert "folder" in refused.value.remedy
    recorder.close()
    assert not path.exists(), "a recording of nothing is none"


def test_a_folder_gets_a_file_a_start(world: RecordedWorld, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    recorder = open_recorder(tmp_path / "folder", 1 << 20, origin(world), silent)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["a-42.jsonl"]
    recorder.close()


@pytest.mark.parametrize("place", ["no/such/folder", "link"])
def test_a_place_that_cannot_be_is_refused(world: RecordedWorld, tmp_path: Path, place: str):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError) as refused:
        open_recorder(tmp_path / place, 1 << 20, origin(world), silent)
    assert refused.value.remedy


def test_without_a_place_the_engine_stands_alone(world: RecordedWorld):
    recorder = open_recorder(None, 1 << 20, origin(world), silent)
    assert isinstance(recorder, NotRecording)
    assert isinstance(recorder.randomness, random.SystemRandom)
    engine = origin(world).make(recorder.randomness)
    assert recorder.tee(engine) is engine
    recorder.close()


# ---- randomness -----------------------------------------------------------------------------


def test_a_seed_repeats_itself_and_no_other():
    one, same, other = (SeededRandom(bytes([n]) * SEED) for n in (1, 1, 2))
    for draw in ((lambda r: r.getrandbits(63)), (lambda r: r.uniform(0.8, 1.2)),
                 (lambda r: r.getrandbits(1000)), (lambda r: r.randrange(10**9))):  # fmt: skip
        first = draw(one)
        assert first == draw(same)
        assert first != draw(other)


def test_its_numbers_fill_their_range():
    source = SeededRandom(bytes(SEED))
    assert {source.getrandbits(3) for _ in range(200)} == set(range(8))
    assert source.getrandbits(0) == 0
    drawn = [source.random() for _ in range(2000)]
    assert all(0 <= x < 1 for x in drawn)
    assert 0.45 < sum(drawn) / len(drawn) < 0.55


def test_recorders_note_where_they_record(world: RecordedWorld):
    started = [detail["file"] for name, detail in world.notes if name == "recording.started"]
    assert started == [str(world.folder / f"{n}-1.jsonl") for n in ("a", "b", "c", MANAGER)]
    assert all(isinstance(recorder, Recorder) for recorder in world.recorders.values())
