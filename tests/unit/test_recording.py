"""Recordings: the same outputs from the same inputs, whatever befell the daemon."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from ipaddress import ip_address
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
from vmmobility.daemon.recording.inputs import ENGINES, FLUSH, INPUTS, QUESTIONS
from vmmobility.daemon.recording.reading import NO_END, open_recording
from vmmobility.daemon.recording.replay import Replay
from vmmobility.daemon.recording.sealed import stand_in
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_move import CommandRefused
from vmmobility.engine.nve import NveEngine
from vmmobility.engine.outputs import Endpoint, Send
from vmmobility.wire.authentication import DIGEST, TRAILER, Seal, seal
from vmmobility.wire.message import Message, encode_parts
from vmmobility.wire.options import VmId
from vmmobility.wire.registry import MAX_DATAGRAM, Kind, Purpose, Role
from vmmobility.wire.values import VmKey

STOPPED = "the daemon stopped"


# ---- what is recorded -----------------------------------------------------------------------


@pytest.mark.parametrize("role", ENGINES)
def test_every_public_name_of_an_engine_is_an_input_or_a_question(role: Role):
    names = {
        name
        for name, value in inspect.getmembers(ENGINES[role])
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }
    known = {FLUSH, *INPUTS[role], *QUESTIONS[role]}
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
    boot = world.nodes["a"].boot  # a newer one would have to prove itself first

    def mark(key_id: int, number: int) -> Seal:
        """Above all that it has said so far."""
        return Seal("a", key_id=key_id, boot=boot, counter=1000 + number)

    right = seal(deregister(), mark(1, 1), secret)
    cases = {
        "bad-digest": seal(deregister(), mark(1, 2), b"\x55" * 32),
        "unknown-key": seal(deregister(), mark(2, 3), secret),
        "truncated": right[:40],
        "unauthenticated": right[:-1],
        "too-long": right + bytes(MAX_DATAGRAM),
        "unsupported-version": seal(b"\x63" + deregister()[1:], mark(1, 4), secret),
        "replayed": right,
    }
    source = Endpoint(world.nodes["a"].nve.locator(version) or ip_address("::1"), 8747)
    # Whoever has read a recording knows the stand-in secrets: they open nothing.
    impostor = seal(deregister(), mark(1, 5), stand_in("a", 1))
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
