"""`vmmob move`: what people are told of a move, and giving one up."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.unit.cli.command_line import Vmmob
from tests.unit.fake_services import BINDING, FakeManager

PHASES = [{"name": "requested", "at_ms": 0.0}, {"name": "prepared", "at_ms": 12.5}]


def test_a_move_that_is_waited_for(vmmob: Vmmob, manager: FakeManager):
    manager.endings = [
        {"state": "prepared", "phases": PHASES},
        {"state": "copying", "phases": [*PHASES, {"name": "copying", "at_ms": 20.0}]},
        {
            "state": "done",
            "ok": True,
            "phases": [*PHASES, {"name": "done", "at_ms": 30.0}, {"name": "end", "at_ms": 31.0}],
            "measured": {"downtime_ms": 12.5},
        },
    ]
    ran = vmmob("move", "vm1", "nve-b", "--wait")
    assert (ran.code, ran.err) == (0, "")
    first, *lines, last = ran.out.splitlines()
    assert first == "move m1: vm1, nve-a -> nve-b"
    # Each phase once, in order, whenever it was first seen.
    assert [line.split()[-1] for line in lines] == ["requested", "prepared", "copying", "end"]
    assert last.split() == ["downtime_ms", "12.5"]


def test_what_a_move_waits_for_and_what_it_leaves_open_is_said(
    vmmob: Vmmob, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vmmobility.cli.move_watch.WAITING_S", 0.0)
    reason = "a previous NVE has not yet answered"
    manager.endings = [
        {"state": "turning-back"},
        {"state": "turning-back"},
        {"state": "done", "ok": True, "reason": reason},
    ]
    ran = vmmob("move", "vm1", "nve-b", "--wait")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[-1] for line in ran.out.splitlines()].count("waiting-turning-back") == 1
    assert f"note: {reason}" in ran.out.splitlines()


def test_a_move_that_fails(vmmob: Vmmob, manager: FakeManager):
    manager.endings = [{"state": "aborted", "ok": False, "reason": "destination is full"}]
    ran = vmmob("move", "vm1", "nve-b", "--wait", "--json")
    assert ran.code == 1
    assert ran.json["ok"] is False
    assert json.loads(ran.err) == {
        "error": "the move of vm1 to nve-b failed: destination is full",
        "remedy": "see `vmmob vm show vm1` for where it runs; then move it again",
    }
    manager.endings = [{"state": "aborted", "ok": False, "reason": "destination is full"}]
    ran = vmmob("move", "vm1", "nve-b", "--wait")
    assert ran.err.startswith("error: the move of vm1 to nve-b failed: destination is full\nremedy")


@pytest.mark.usefixtures("manager")
def test_a_move_that_takes_too_long(vmmob: Vmmob):
    ran = vmmob("move", "vm1", "nve-b", "--wait-timeout", "0.05")
    assert ran.code == 1
    assert "has not ended within 0.05 s: it is requested" in ran.err


@pytest.mark.parametrize(
    ("words", "terms"),
    [
        ((), {}),
        (
            ("--timeout", "30", "--timeout-postcopy", "--copy-storage-all"),
            {"timeout_s": 30, "on_timeout": "force", "copy_storage": "all"},
        ),
        (
            ("--timeout", "30", "--on-timeout", "abort", "--bandwidth", "100", "--downtime", "300"),
            {"timeout_s": 30, "bandwidth_mib_s": 100, "downtime_ms": 300},
        ),
        (("--copy-storage", "none"), {"copy_storage": "none"}),
    ],
)
def test_the_terms_of_a_move(
    vmmob: Vmmob, manager: FakeManager, words: tuple[str, ...], terms: dict[str, Any]
):
    assert vmmob("move", "vm1", "nve-b", *words).code == 0
    assert manager.started[-1]["terms"] == terms


@pytest.mark.usefixtures("manager")
def test_a_move_is_not_waited_for_unasked(vmmob: Vmmob):
    ran = vmmob("move", "vm1", "nve-b")
    assert (ran.code, ran.out) == (0, "move m1: vm1, nve-a -> nve-b\n")


def test_a_move_is_given_up(vmmob: Vmmob, manager: FakeManager):
    vmmob("move", "vm1", "nve-b")
    assert vmmob("move", "abort", "m1").out == "move m1: vm1, nve-a -> nve-b: turning-back\n"
    manager.endings = [{"state": "aborted", "ok": False, "reason": "given up"}]
    ran = vmmob("move", "abort", "vm1", "--wait", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["state"] == "aborted"
    # Ended, it is known by its ID alone.
    assert "error: move m1 is aborted" in vmmob("move", "abort", "m1").err
    none = vmmob("move", "abort", "vm1")
    assert (none.code, none.out) == (1, "")
    assert "error: no move vm1, nor is a VM of that name being moved\nremedy: list" in none.err


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ({"state": "done", "ok": True}, "was too far: vm1 is at nve-b"),
        ({"state": "failed", "ok": False, "reason": "it is gone"}, "failed: it is gone"),
    ],
)
def test_a_move_that_cannot_be_given_up_any_more(
    vmmob: Vmmob, manager: FakeManager, ending: dict[str, Any], words: str
):
    vmmob("move", "vm1", "nve-b")
    manager.endings = [ending]
    ran = vmmob("move", "abort", "0/vm1", "--wait")
    assert ran.code == 1
    assert words in ran.err


@pytest.mark.usefixtures("manager")
def test_a_vm_may_be_called_abort(vmmob: Vmmob, service: FakeManager):
    service.held = [{**BINDING, "vm": "abort"}]
    assert vmmob("move", "0/abort", "nve-b").out == "move m1: abort, nve-a -> nve-b\n"
    assert vmmob("move", "abort", "abort").out.endswith(": turning-back\n")
    assert vmmob("move", "--json", "0/abort", "nve-b").json["to"] == "nve-b"
    for help in (("move", "--help"), ("move", "vm1", "--help"), ("move", "abort", "--help")):
        assert "Usage: vmmob move " in vmmob(*help).out


def test_moves_are_listed(vmmob: Vmmob, manager: FakeManager):
    vmmob("move", "vm1", "nve-b")
    manager.started[0] |= {"ok": True, "state": "done"}
    vmmob("move", "vm1", "nve-c")
    manager.started[1]["progress"] = {"disk_bytes": 3 << 20, "disk_total_bytes": 8 << 20}
    heading, first, second = vmmob("move", "list").out.splitlines()
    assert heading.split()[:3] == ["MOVE", "VM", "FROM"]
    assert first.split()[:7] == ["m1", "vm1", "nve-a", "nve-b", "hot", "done", "yes"]
    assert "disk 3 of 8 MiB" in second
    assert [row["id"] for row in vmmob("move", "list", "--json").json] == ["m1", "m2"]
    assert [row["id"] for row in vmmob("move", "list", "--under-way", "--json").json] == ["m2"]
    assert vmmob("show", "moves").out == vmmob("move", "list").out


def test_a_move_is_shown(vmmob: Vmmob, manager: FakeManager):
    vmmob("move", "vm1", "nve-b")
    vmmob("move", "vm1", "nve-c")
    manager.started[1] |= {"phases": PHASES, "measured": {"downtime_ms": 12.5}}
    latest = vmmob("move", "show", "vm1")
    assert latest.out.startswith("move m2: vm1, nve-a -> nve-c\n")
    assert latest.out.splitlines()[-1].split() == ["12.5", "ms", "prepared"]
    assert "downtime_ms  12.5" in latest.out
    assert vmmob("move", "show", "m1", "--json").json["to"] == "nve-b"
    none = vmmob("move", "show", "vm2")
    assert "error: no move vm2, nor has a VM of that name been moved\nremedy: list" in none.err


def test_a_move_is_watched(vmmob: Vmmob, manager: FakeManager, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vmmobility.cli.move_watch.PROGRESS_S", 0.0)
    vmmob("move", "vm1", "nve-b")
    manager.endings = [
        {"phases": PHASES, "progress": {"memory_bytes": 1 << 20, "memory_total_bytes": 4 << 20}},
        {"ok": True, "state": "done", "measured": {"downtime_ms": 12.5}},
    ]
    ran = vmmob("move", "watch", "vm1", "--json")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["event"] for line in lines] == ["phase", "phase", "progress", "end"]
    assert [line["move"] for line in lines[:3]] == ["m1"] * 3
    assert lines[1]["name"] == "prepared"
    assert lines[2]["memory_bytes"] == 1 << 20
    assert lines[3]["measured"] == {"downtime_ms": 12.5}
    again = vmmob("move", "watch", "m1")
    assert again.out.splitlines()[0] == "move m1: vm1, nve-a -> nve-b"
    assert again.out.splitlines()[-1].split() == ["downtime_ms", "12.5"]


def test_a_watched_move_is_waited_for_as_long_as_was_said(vmmob: Vmmob, manager: FakeManager):
    """Signs of life come every 10 s: the stream alone would overrun the limit."""
    vmmob("move", "vm1", "nve-b")
    began = time.monotonic()
    ran = vmmob("move", "watch", "m1", "--wait-timeout", "1.5")
    assert 1.4 < time.monotonic() - began < 5
    assert (ran.code, "has not ended within 1.5 s" in ran.err) == (1, True)


def test_a_watched_move_that_fails(vmmob: Vmmob, manager: FakeManager):
    vmmob("move", "vm1", "nve-b")
    manager.endings = [{"ok": False, "state": "aborted", "reason": "destination is full"}]
    ran = vmmob("move", "watch", "m1")
    assert ran.code == 1
    assert "error: move m1 is aborted: destination is full\nremedy: see `vmmob vm" in ran.err


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize(
    ("words", "to"),
    [
        (["nve-b", "--server", "server-2"], "nve-b (server-2)"),
        (["--to", "nve-b", "--server", "server-2"], "nve-b (server-2)"),
        (["--server", "server-2"], "nve-a (server-2)"),
    ],
)
def test_one_verb_moves_to_a_server(vmmob: Vmmob, words: list[str], to: str) -> None:
    ran = vmmob("move", "vm1", *words)
    assert (ran.code, ran.err) == (0, "")
    assert f"nve-a (server-1) -> {to}" in ran.out
    assert to in vmmob("move", "list").out


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "name the NVE to move it to"),
        (["nve-b", "--to", "nve-c"], "two NVEs are named"),
        (["nve-b", "--server", "s", "--mode", "warm"], "leave --server out"),
    ],
)
def test_a_destination_is_one(vmmob: Vmmob, words: list[str], why: str) -> None:
    ran = vmmob("move", "vm1", *words)
    assert ran.code == 2
    assert why in ran.err
