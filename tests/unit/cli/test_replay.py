"""`vmmob replay`: the conversation, as JSON, and what it says of differences and foreign files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engine.network import MANAGER
from tests.unit.cli.command_line import Vmmob
from tests.unit.recorded_world import (
    RecordedWorld,
    replayed,
)
from vmmobility.daemon.recording.reading import NO_END
from vmmobility.engine.nve import NveEngine

STOPPED = "the daemon stopped"


def test_the_conversation_is_readable(moved: RecordedWorld, vmmob: Vmmob):
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


def test_the_nves_conversation_has_orders_states_and_reports(moved: RecordedWorld, vmmob: Vmmob):
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


def test_json_has_the_same(moved: RecordedWorld, vmmob: Vmmob):
    code, out, _ = vmmob("replay", "--json", moved.folder / "a-1.jsonl")
    found = json.loads(out)
    assert (code, found["same"], found["difference"], found["ending"]) == (0, True, None, STOPPED)
    assert (found["role"], found["node"]) == ("nve", "a")
    run = replayed(moved.folder / "a-1.jsonl")
    assert (found["inputs"], found["outputs"]) == (run.inputs, run.outputs)
    assert any(row["to"] == MANAGER and row["who"] == "a" for row in found["conversation"])


def test_until_ends_early(moved: RecordedWorld, vmmob: Vmmob):
    _, out, _ = vmmob("replay", "--json", "--until", "2", moved.folder / "a-1.jsonl")
    found = json.loads(out)
    assert 0 < found["inputs"] < replayed(moved.folder / "a-1.jsonl").inputs
    assert max(row["at_s"] for row in found["conversation"]) <= 2
    assert found["ending"] is None


def test_a_difference_is_shown_with_exit_code_1(
    moved: RecordedWorld, vmmob: Vmmob, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(NveEngine, "_units", lambda self, seconds: 1)
    code, out, err = vmmob("replay", moved.folder / "a-1.jsonl")
    assert (code, err) == (1, "")
    *_, where, expected, found = out.splitlines()
    assert "then a difference at " in where
    assert expected.startswith('  expected: {"$Send"')
    assert found.startswith('  found:    {"$Send"')


def test_another_version_is_named(moved: RecordedWorld, vmmob: Vmmob, tmp_path: Path):
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


def test_a_foreign_file_is_told_in_two_lines(tmp_path: Path, vmmob: Vmmob):
    (tmp_path / "x").write_text("hello\n")
    code, out, err = vmmob("replay", tmp_path / "x")
    assert (code, out) == (1, "")
    assert [line.split()[0] for line in err.splitlines()] == ["error:", "remedy:"]
