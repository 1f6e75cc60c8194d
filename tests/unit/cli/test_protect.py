"""`vmmob vm protect|unprotect`, `vmmob show protected`, `vmmob move --mode warm`."""

from __future__ import annotations

from tests.unit.cli.command_line import Vmmob
from tests.unit.fake_services import FakeManager


def test_a_vm_is_protected(vmmob: Vmmob, manager: FakeManager):
    ran = vmmob("vm", "protect", "vm1", "--to", "nve-b", "--every", "10s")
    assert (ran.code, ran.out) == (
        0, "VM vm1: standby at nve-b, every 10 s; it takes over\n"
    )  # fmt: skip
    assert vmmob("show", "protected", "--json").json[0]["every_s"] == 10.0
    assert "nve-b" in vmmob("show", "protected").out
    assert "1.2 s old" in vmmob("vm", "show", "vm1").out
    assert vmmob("vm", "unprotect", "vm1").code == 0
    assert manager.guarded == []


def test_at_long_intervals_nobody_takes_over_unless_asked(vmmob: Vmmob, manager: FakeManager):
    vmmob("vm", "protect", "vm1", "--to", "nve-b", "--every", "1h")
    vmmob("vm", "protect", "vm1", "--to", "nve-b", "--every", "1h", "--fail-over", "--lease", "20s")
    vmmob("vm", "protect", "vm1", "--to", "nve-b", "--no-fail-over")
    assert [row["fail_over"] for row in manager.guarded] == [False, True, False]
    assert [row["every_s"] for row in manager.guarded] == [3600.0, 3600.0, 5.0]
    assert manager.guarded[1]["lease_s"] == 20.0


def test_a_warm_move_goes_to_the_standby_alone(vmmob: Vmmob, manager: FakeManager):
    ran = vmmob("move", "vm1", "nve-b", "--mode", "warm")
    assert ran.code == 1
    assert "has no standby at nve-b" in ran.err
    assert "remedy:" in ran.err
    vmmob("vm", "protect", "vm1", "--to", "nve-b")
    manager.endings = [
        {
            "state": "done",
            "ok": True,
            "phases": [{"name": "requested", "at_ms": 0.0}, {"name": "handing", "at_ms": 0.1}],
            "measured": {"stopped_ms": 812.0},
        }
    ]
    ran = vmmob("move", "vm1", "nve-b", "--mode", "warm", "--wait")
    assert ran.code == 0
    assert "handing" in ran.out
    assert "812.0" in ran.out
    assert manager.modes == ["warm", "warm"]
    assert [row["mode"] for row in vmmob("move", "list", "--json").json] == ["warm"]


def test_what_cannot_be_is_said(vmmob: Vmmob, manager: FakeManager):
    assert "no duration" in vmmob("vm", "protect", "vm1", "--to", "nve-b", "--every", "soon").err
    assert vmmob("vm", "protect", "vm1", "--to", "nowhere").code == 1
    assert "not protected" in vmmob("vm", "unprotect", "vm1").err
    assert manager.guarded == []


def test_at_a_time_of_day(vmmob: Vmmob, manager: FakeManager):
    ran = vmmob("vm", "protect", "vm1", "--to", "nve-b", "--at", "3:00")
    assert (ran.code, ran.out) == (
        0, "VM vm1: standby at nve-b, daily at 03:00 UTC; it does not take over by itself\n"
    )  # fmt: skip
    row = vmmob("show", "protected", "--json").json[0]
    assert (row["at"], row["every_s"], row["fail_over"]) == ("03:00", 86400.0, False)
    shown = vmmob("show", "protected").out
    assert "daily at 03:00 UTC" in shown
    assert "2.5" in shown
    both = vmmob("vm", "protect", "vm1", "--to", "nve-b", "--at", "03:00", "--every", "5s")
    assert (both.code, "give one of them" in both.err) == (2, True)
    for wrong in ("24:00", "03:60", "noon", "3"):
        assert "no time of day" in vmmob("vm", "protect", "vm1", "--to", "b", "--at", wrong).err
    assert len(manager.guarded) == 1
