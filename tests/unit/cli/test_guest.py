"""`vmmob vm start|stop|suspend|resume|delete`: what is asked, what people read."""

from __future__ import annotations

import json

from tests.unit.cli.command_line import Vmmob
from tests.unit.fake_services import FakeManager


def test_a_guest_is_stopped_and_started(vmmob: Vmmob, manager: FakeManager):
    assert vmmob("vm", "stop", "vm1", "--grace", "5").out == "vm1: stopped at nve-a\n"
    assert vmmob("vm", "start", "vm1", "--wait").out == "vm1: running at nve-a\n"
    assert json.loads(vmmob("vm", "stop", "vm1", "--force", "--json").out)["guest"] == "stopped"
    assert manager.ordered == [
        ("stop", False, 5),
        ("start", False, None),
        ("stop", True, None),
    ]
    assert "stopped" in vmmob("vm", "list").out
    assert "stopped" in vmmob("vm", "show", "vm1").out


def test_what_the_nve_refuses_is_an_error_with_its_reason(vmmob: Vmmob, manager: FakeManager):
    refused = vmmob("vm", "suspend", "vm1", "--wait")
    assert refused.code == 1
    assert "error: vm1 is running: nve-a: hypervisor-failure: no such command" in refused.err
    assert "remedy: see `vmmob vm show vm1`" in refused.err


def test_what_runs_is_deleted_only_with_force(vmmob: Vmmob, manager: FakeManager):
    refused = vmmob("vm", "delete", "vm1")
    assert refused.code == 1
    assert "error: VM vm1 is running" in refused.err
    assert vmmob("vm", "delete", "vm1", "--force", "--wait").out == "vm1: deleted at nve-a\n"
    assert "no VM vm1" in vmmob("vm", "start", "vm1").err


def test_nobody_asks_for_what_is_no_verb(vmmob: Vmmob, manager: FakeManager):
    assert vmmob("vm", "reboot", "vm1").code == 2
    assert vmmob("vm", "start", "vm1", "--force").code == 2


def test_a_vm_is_moved_cold_if_people_say_so(vmmob: Vmmob, manager: FakeManager):
    assert vmmob("move", "vm1", "nve-b", "--mode", "cold").code == 0
    assert vmmob("move", "vm1", "nve-b").code == 0
    assert vmmob("move", "vm1", "nve-b", "--mode", "warm-ish").code == 2
    assert manager.modes == ["cold", ""]
