"""Recordings: the same outputs from the same inputs, whatever befell the daemon or the file."""

from __future__ import annotations

import errno
import inspect
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conversation import interfaces_of
from tests.engine.network import MANAGER, Node
from tests.unit.recorded_world import (
    VM,
    RecordedWorld,
    lines_of,
    lossy_move_with_a_crash,
    replayed,
)
from vmmobility.daemon.recording import codec
from vmmobility.daemon.recording.inputs import ENGINES, FLUSH, INPUTS, QUESTIONS, WITHIN, Origin
from vmmobility.daemon.recording.randomness import SEED, SeededRandom
from vmmobility.daemon.recording.reading import NO_END, TORN, open_recording
from vmmobility.daemon.recording.recorder import NotRecording, Recorder, open_recorder
from vmmobility.daemon.recording.replay import Replay
from vmmobility.daemon.recording.sealed import stand_in
from vmmobility.drivers.dataplane import Traffic
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_move import CommandRefused
from vmmobility.engine.nve import NveEngine
from vmmobility.engine.outputs import Endpoint, Order, Send
from vmmobility.errors import ConfigError, RecordingError
from vmmobility.wire.authentication import DIGEST, TRAILER, Seal, seal
from vmmobility.wire.message import Message, encode_parts
from vmmobility.wire.options import VmId
from vmmobility.wire.registry import MAX_DATAGRAM, Kind, Purpose, Role
from vmmobility.wire.values import Interface, Nve, VmKey

STOPPED = "the daemon stopped"


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> RecordedWorld:
    """Recordings that tests may read, not write."""
    return lossy_move_with_a_crash(tmp_path_factory.mktemp("moved"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RecordedWorld]:
    made = RecordedWorld(tmp_path)
    made.run(1)
    yield made
    made.close()


# ---- what is recorded -----------------------------------------------------------------------


@pytest.mark.parametrize("role", ENGINES)
def test_every_public_name_of_an_engine_is_an_input_or_a_question(role: Role):
    names = {
        name
        for name, value in inspect.getmembers(ENGINES[role])
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }
    known = {FLUSH, *INPUTS[role], *QUESTIONS[role], *WITHIN[role]}
    assert names - known == set(), "say in daemon/recording/inputs.py what these are"
    assert known - names == set(), "daemon/recording/inputs.py names what no longer is"
    assert not set(INPUTS[role]) & set(QUESTIONS[role])


# ---- the same again -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_lossy_move_with_crashes_replays_to_the_same_outputs(tmp_path: Path, seed: int):
    world = lossy_move_with_a_crash(tmp_path, seed)
    endings = {}
    for path in world.files():
        run = replayed(path)
        assert run.difference is None, (path.name, run.difference)
        assert run.inputs > 0
        endings[path.stem] = run.recording.ending
    assert set(world.recorders) == {MANAGER, "a", "b", "c"}
    assert endings.pop(f"{MANAGER}-1") == endings.pop("b-1") == NO_END
    assert set(endings.values()) == {STOPPED}
    told = {line["input"] for path in world.files() for line in lines_of(path) if "input" in line}
    assert {"datagram_received", "start_move", "order_done", "guest_report"} <= told


def test_another_process_says_the_same(moved: RecordedWorld):
    """Nothing in an engine hangs on the order of a set, or on where objects lie."""
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "vmmobility", "replay", str(moved.folder / "manager-2.jsonl")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1].endswith(f"outputs, same ({STOPPED})")


def test_an_engine_that_answers_otherwise_is_found_at_its_first_difference(
    moved: RecordedWorld, monkeypatch: pytest.MonkeyPatch
):
    path = moved.folder / f"{MANAGER}-1.jsonl"
    new_epoch = ManagerEngine._new_epoch
    monkeypatch.setattr(ManagerEngine, "_new_epoch", lambda self: new_epoch(self) + 1)
    found = replayed(path).difference
    assert found is not None
    line = list(lines_of(path))[found.line - 1]
    assert codec.text(line["output"]) == found.expected
    assert "$Persist" in found.expected
    assert found.found.replace('"epoch":2', '"epoch":1') == found.expected
    assert found.after == "flush after datagram_received"


def test_one_output_more_or_less_is_a_difference(moved: RecordedWorld, tmp_path: Path):
    lines = (moved.folder / f"{MANAGER}-1.jsonl").read_text().splitlines()
    at = max(n for n, line in enumerate(lines) if '"flush":1' in line)
    fewer = [*lines[:at], '{"flush":0}', *lines[at + 2 :]]
    more = [*lines[: at + 2], lines[at + 1], *lines[at + 2 :]]
    more[at] = '{"flush":2}'
    for changed, which in ((fewer, "expected"), (more, "found")):
        path = tmp_path / which
        path.write_text("\n".join(changed) + "\n")
        found = replayed(path).difference
        assert found is not None
        assert getattr(found, which) == "nothing more"


def test_errors_that_inputs_raise_are_part_of_it(world: RecordedWorld):
    with pytest.raises(CommandRefused):
        world.move(VM, "b")
    world.run(1)
    world.close()
    path = world.folder / f"{MANAGER}-1.jsonl"
    raised = [line["raised"] for line in lines_of(path) if "raised" in line]
    assert raised == ["MoveRefused: " + raised[0].partition(": ")[2]]
    run = replayed(path)
    assert (run.difference, run.recording.ending) == (None, STOPPED)


def test_a_fault_of_the_engine_is_on_record_and_shows_again(
    world: RecordedWorld, monkeypatch: pytest.MonkeyPatch
):
    def faulty(self: NveEngine, vm: VmKey, event: str, detail: Any, now: float) -> None:
        raise ZeroDivisionError("a fault")

    edge = world.nodes["a"].edge
    assert edge is not None
    with monkeypatch.context() as patched:
        patched.setattr(NveEngine, "guest_report", faulty)
        world.restart("a")
        path = world.folder / "a-2.jsonl"
        edge = world.nodes["a"].edge
        assert edge is not None
        with pytest.raises(ZeroDivisionError):
            edge.guest_report(VM, "started", {}, world.now)
        # The daemon dies of it: nothing is closed, and yet it is on record.
        run = replayed(path)
        assert (run.difference, run.recording.ending) == (None, NO_END)
    found = replayed(path).difference
    assert found is not None
    assert (found.expected, found.found) == ("ZeroDivisionError: a fault", "no error")


def test_every_command_of_people_replays(world: RecordedWorld):
    interfaces, now = interfaces_of("vm1", 1, 2), lambda: world.now
    other, manager = VmKey(0, "vm2"), world.nodes[MANAGER].manager
    edge = world.nodes["b"].edge
    assert manager is not None
    assert edge is not None
    manager.onboard(VM, interfaces, ("a", "b"), now())
    world.start_vm(VM, "a", interfaces)
    world.run(2)
    moved = world.move(VM, "b")
    world.run(0.1)
    manager.abort_move(manager.moves[moved], now())
    world.run(10)
    manager.check(1, now())
    edge.expect_vm(2, other, interfaces_of("vm2", 2, 1), b"{}", now())
    world.run(5)
    edge.check(3, None, now())
    edge.check(4, other, now())
    world.run(5)
    edge.unexpect_vm(5, other, now())
    with pytest.raises(CommandRefused):
        manager.release(VM, now(), fenced="a")
    world.stop_vm(VM, "a")
    world.run(5)
    manager.offboard(VM, now())
    world.run(1)
    world.close()
    told = set()
    for path in world.files():
        assert replayed(path).difference is None
        told |= {line["input"] for line in lines_of(path) if "input" in line}
    commands = {"onboard", "start_move", "abort_move", "check", "release", "offboard"}
    assert told >= commands | {"expect_vm", "unexpect_vm", "start_vm", "stop_vm", "audited"}
    assert not [detail for name, detail in world.notes if name == "recording.stopped"]


# ---- datagrams and keys ---------------------------------------------------------------------


def deregister() -> bytes:
    message = Message(Kind.REQUEST, Purpose.DEREGISTER, 7, (VmId(VM),), 0)
    return encode_parts(message, MAX_DATAGRAM, TRAILER)[0]


@pytest.mark.parametrize("version", [4, 6])
def test_forged_and_truncated_datagrams_are_dropped_again_for_the_same_reason(
    world: RecordedWorld, version: int
):
    node = world.nodes[MANAGER]
    secret = world.keys(MANAGER, "a")[0][1]
    mark = partial(Seal, "a", boot=1 << 60)
    right = seal(deregister(), mark(key_id=1, counter=1), secret)
    cases = {
        "bad-digest": seal(deregister(), mark(key_id=1, counter=2), b"\x55" * 32),
        "unknown-key": seal(deregister(), mark(key_id=2, counter=3), secret),
        "truncated": right[:40],
        "unauthenticated": right[:-1],
        "too-long": right + bytes(MAX_DATAGRAM),
        "unsupported-version": seal(b"\x63" + deregister()[1:], mark(key_id=1, counter=4), secret),
        "replayed": right,
    }
    source = Endpoint(world.nodes["a"].nve.locator(version) or ip_address("::1"), 8747)
    # Whoever has read a recording knows the stand-in secrets: they open nothing.
    impostor = seal(deregister(), mark(key_id=1, counter=5), stand_in("a", 1))
    engine = node.manager
    assert engine is not None
    for data in (right, *cases.values(), impostor):
        world.feed(node, lambda d=data: engine.datagram_received(d, source, None, world.now))  # type: ignore[misc]
    drops = dict(engine.channel.drops)
    assert {reason: drops[reason] for reason in cases} == {
        **dict.fromkeys(cases, 1),
        "bad-digest": 2,
    }
    world.close()
    again: list[str] = []
    with open_recording(world.folder / f"{MANAGER}-1.jsonl") as recording:
        run = Replay(recording)
        for happening in run.run():
            again += getattr(happening, "dropped", ())
    assert run.difference is None
    assert {reason: again.count(reason) for reason in drops} == drops


def test_keys_turn_over_while_it_records(world: RecordedWorld):
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(1)
    secrets, signing = world.keys(MANAGER, "a")
    old = secrets[1]
    for step in ("rotate", "activate", "retire", "anew"):
        if step == "rotate":
            secrets[2] = b"\x11" * 32
        elif step == "activate":
            signing["a"] = signing[MANAGER] = 2
        elif step == "retire":
            del secrets[1]
        else:  # the same number, another secret
            secrets[2] = b"\x22" * 32
        for name, other in (("a", MANAGER), (MANAGER, "a")):
            world.read_keys(name, other)
        world.run(70)
    assert old not in secrets.values()
    world.close()
    for name in (MANAGER, "a"):
        path = world.folder / f"{name}-1.jsonl"
        assert sum(line.get("input") == "set_secrets" for line in lines_of(path)) == 4
        assert replayed(path).difference is None


def test_no_secret_and_no_digest_is_in_a_recording(tmp_path: Path):
    world = RecordedWorld(tmp_path)
    sent: list[bytes] = []

    def observe(node: Node, what: str, value: Any) -> None:
        if isinstance(value, Send):
            sent.append(value.data)

    world.observe = observe
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 1))
    world.run(3)
    world.keys(MANAGER, "a")[0][2] = bytes(range(32))
    world.read_keys("a", MANAGER)
    world.read_keys(MANAGER, "a")
    world.run(70)
    world.close()
    assert len(sent) >= 4
    text = b"".join(path.read_bytes() for path in world.files())
    assert sent[0][:-DIGEST].hex().encode() in text
    hidden = [secret for keys, _ in world.secrets.values() for secret in keys.values()]
    assert len(hidden) == 4
    for octets in (*hidden, *(data[-DIGEST:] for data in sent)):
        for form in (octets, octets.hex().encode(), octets[:16].hex().encode()):
            assert form not in text


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
        frozenset({"a", "b"}),
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


# ---- `vmmob replay` -------------------------------------------------------------------------


@pytest.fixture
def vmmob(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    from vmmobility.cli import main as cli

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(end.value.code or 0), out, err

    return run


def test_the_conversation_is_readable(moved: RecordedWorld, vmmob: Callable[..., Any]):
    code, out, err = vmmob("replay", moved.folder / f"{MANAGER}-1.jsonl")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("manager manager, boot ")
    assert any("a          -> manager    attach vm1 " in line for line in lines)
    assert any("manager    -> a          attach vm1 accepted epoch 1" in line for line in lines)
    assert any("is told start_move vm=vm1 to=b" in line for line in lines)
    assert lines[-1].endswith(f"same ({NO_END})")
    assert not any("records" in line or "told timer" in line for line in lines)
    code, out, _ = vmmob("replay", "--outputs", moved.folder / f"{MANAGER}-1.jsonl")
    assert code == 0
    assert "records 1: " in out
    assert "is told timer" in out


def test_the_nves_conversation_has_orders_states_and_reports(
    moved: RecordedWorld, vmmob: Callable[..., Any]
):
    _, out, _ = vmmob("replay", moved.folder / "a-1.jsonl")
    for words in (
        "orders vm1 start",
        "vm1 start is done",
        "holds vm1: plugged, local",
        "reports vm1 started",
        "holds vm1: redirect to b",
        "* registered vm=vm1",
    ):
        assert words in out, words


def test_json_has_the_same(moved: RecordedWorld, vmmob: Callable[..., Any]):
    code, out, _ = vmmob("replay", "--json", moved.folder / "a-1.jsonl")
    found = json.loads(out)
    assert (code, found["same"], found["difference"], found["ending"]) == (0, True, None, STOPPED)
    assert (found["role"], found["node"]) == ("nve", "a")
    run = replayed(moved.folder / "a-1.jsonl")
    assert (found["inputs"], found["outputs"]) == (run.inputs, run.outputs)
    assert any(row["to"] == MANAGER and row["who"] == "a" for row in found["conversation"])


def test_until_ends_early(moved: RecordedWorld, vmmob: Callable[..., Any]):
    _, out, _ = vmmob("replay", "--json", "--until", "2", moved.folder / "a-1.jsonl")
    found = json.loads(out)
    assert 0 < found["inputs"] < replayed(moved.folder / "a-1.jsonl").inputs
    assert max(row["at_s"] for row in found["conversation"]) <= 2
    assert found["ending"] is None


def test_a_difference_is_shown_with_exit_code_1(
    moved: RecordedWorld, vmmob: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(NveEngine, "_units", lambda self, seconds: 1)
    code, out, err = vmmob("replay", moved.folder / "a-1.jsonl")
    assert (code, err) == (1, "")
    *_, where, expected, found = out.splitlines()
    assert "then a difference at " in where
    assert expected.startswith('  expected: {"$Send"')
    assert found.startswith('  found:    {"$Send"')


def test_another_version_is_named(moved: RecordedWorld, vmmob: Callable[..., Any], tmp_path: Path):
    header, rest = (moved.folder / "a-1.jsonl").read_text().split("\n", 1)
    path = tmp_path / "old"
    changed = {**json.loads(header), "version": "0.0.1"}
    path.write_text(json.dumps(changed) + "\n" + rest)
    code, out, _ = vmmob("replay", path)
    assert code == 0
    assert "recorded by 0.0.1" in out.splitlines()[0]
    path.write_text(json.dumps({**changed, "format_version": 99}) + "\n" + rest)
    code, _, err = vmmob("replay", path)
    assert code == 1
    assert err.splitlines()[1] == "remedy: replay it with that version"
    path.write_text(header + "\n" + rest.replace('"input":"timer"', '"input":"tick"'))
    code, _, err = vmmob("replay", path)
    assert (code, "tick cannot be repeated" in err) == (1, True)


def test_a_foreign_file_is_told_in_two_lines(tmp_path: Path, vmmob: Callable[..., Any]):
    (tmp_path / "x").write_text("hello\n")
    code, out, err = vmmob("replay", tmp_path / "x")
    assert (code, out) == (1, "")
    assert [line.split()[0] for line in err.splitlines()] == ["error:", "remedy:"]


def test_recorders_note_where_they_record(world: RecordedWorld):
    started = [detail["file"] for name, detail in world.notes if name == "recording.started"]
    assert started == [str(world.folder / f"{n}-1.jsonl") for n in ("a", "b", "c", MANAGER)]
    assert all(isinstance(recorder, Recorder) for recorder in world.recorders.values())
