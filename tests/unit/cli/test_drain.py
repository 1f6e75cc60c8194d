"""`vmmob drain`, `vmmob nve cordon`: what people are told of an NVE that is emptied."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.command_line import Vmmob
from tests.unit.fake_services import FakeManager

DONE = {"state": "done", "ok": True, "settled": 3, "moved": 3, "moving": 0, "waiting": 0}
FAILED = {
    "state": "incomplete", "ok": False, "settled": 3, "moved": 2, "failed": 1, "moving": 0,
    "reasons": [{"vni": 0, "vm": "vm3", "reason": "no NVE can take it: there is no other"}],
}  # fmt: skip


def test_a_drain_is_begun(vmmob: Vmmob, manager: FakeManager):
    ran = vmmob("drain", "nve-a", "--to", "nve-b", "--to", "nve-c", "--parallel", 2)
    assert (ran.code, ran.out) == (0, "drain d1: nve-a, 3 VMs, 2 at once\n")
    [row] = manager.drained
    assert (row["to"], row["parallel"], row["uncordon"]) == (["nve-b", "nve-c"], 2, False)
    assert vmmob("drain", "nve-a", "--uncordon", "--json").json["uncordon"] is True


def test_a_drain_that_is_waited_for(vmmob: Vmmob, manager: FakeManager):
    manager.drain_endings = [{"settled": 2, "moved": 2}, DONE]
    ran = vmmob("drain", "nve-a", "--wait")
    assert ran.code == 0
    assert ran.out.splitlines()[1:] == [
        "  1 of 3 VMs, 1 moving, 2.0 s, some 4 s to go",
        "  2 of 3 VMs, 1 moving, 2.0 s, some 4 s to go",
        "  3 of 3 VMs, 2.0 s",
    ]


def test_what_could_not_be_moved_is_named(vmmob: Vmmob, manager: FakeManager):
    manager.drain_endings = [FAILED]
    ran = vmmob("drain", "nve-a", "--wait", "--json")
    assert (ran.code, ran.json["state"]) == (1, "incomplete")
    told = json.loads(ran.err)
    assert told["error"].startswith("drain d1 of nve-a is incomplete: vm3 (no NVE can take it")
    assert told["remedy"].startswith("see `vmmob drain show d1`")
    assert vmmob("drain", "show", "nve-a").code == 0
    shown = vmmob("drain", "show", "nve-a", "--wait")
    assert (shown.code, "error: drain d1 of nve-a is incomplete" in shown.err) == (1, True)


@pytest.mark.usefixtures("manager")
def test_drains_are_listed_shown_and_given_up(vmmob: Vmmob):
    assert "no drain nve-a" in vmmob("drain", "show", "nve-a").err
    vmmob("drain", "nve-a")
    heading, row = vmmob("drain", "list").out.splitlines()
    assert heading.split()[:3] == ["DRAIN", "NVE", "STATE"]
    assert row.split()[:5] == ["d1", "nve-a", "running", "3", "1"]
    shown = vmmob("drain", "show", "nve-a").out.splitlines()
    assert shown[0] == "drain d1: nve-a, running, 1 of 3 VMs, 1 moving, 2.0 s, some 4 s to go"
    assert shown[2].split()[:4] == ["vm1", "moving", "nve-b", "m1"]
    assert vmmob("drain", "show", "d1", "--json").json["vms"][0]["attempts"] == 1
    assert vmmob("drain", "abort", "d1").out.startswith("drain d1: aborting, 1 of 3 VMs")
    assert "no NVE nowhere" in vmmob("drain", "nowhere").err
    assert "Usage: vmmob drain" in vmmob("drain", "nve-a", "--help").out


def test_an_nve_is_cordoned(vmmob: Vmmob, manager: FakeManager):
    assert vmmob("nve", "cordon", "nve-a").out == "nve-a is cordoned\n"
    assert vmmob("show", "nves").out.splitlines()[1].split()[-1] == "yes"
    assert vmmob("nve", "uncordon", "nve-a", "--json").json["cordoned"] is False
    assert manager.cordoned == set()
