"""`vmmob move`: what people are told of a move, and giving one up."""

from __future__ import annotations

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
    monkeypatch.setattr("vmmobility.cli.move.WAITING_S", 0.0)
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
    assert ran.err.startswith("error: the move of vm1 to nve-b failed: destination is full\nremedy")


@pytest.mark.usefixtures("manager")
def test_a_move_that_takes_too_long(vmmob: Vmmob):
    ran = vmmob("move", "vm1", "nve-b", "--timeout", "0.05")
    assert ran.code == 1
    assert "has not ended within 0.05 s: it is requested" in ran.err


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
