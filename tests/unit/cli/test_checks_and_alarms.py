"""What is wrong now, by `check` and by alarms: of the whole domain and of one NVE."""

from __future__ import annotations

import pytest

from tests.unit.cli.command_line import Vmmob
from tests.unit.fake_services import ALARM, DIFFERENCE, FakeManager, FakeNve

CHECKS = [
    (("check",), "3 bindings and redirects compared, ", ", 0 NVEs did not answer"),
    (("nve", "check"), "1 VMs compared, ", ""),
]


@pytest.mark.usefixtures("manager", "nve")
@pytest.mark.parametrize(("command", "before", "after"), CHECKS)
def test_a_check_that_finds_nothing(
    vmmob: Vmmob, command: tuple[str, ...], before: str, after: str
):
    ran = vmmob(*command)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{before}0 differences (0 repaired){after}\n"
    ran = vmmob(*command, "--json")
    assert (ran.code, ran.json["drift"]) == (0, [])


@pytest.mark.parametrize(("command", "before", "after"), CHECKS)
def test_a_check_that_finds_a_difference(
    vmmob: Vmmob,
    manager: FakeManager,
    nve: FakeNve,
    command: tuple[str, ...],
    before: str,
    after: str,
):
    drift = [DIFFERENCE, {**DIFFERENCE, "what": "guest", "repaired": False}]
    for service in (manager, nve):
        service.compared = {**service.compared, "drift": drift}
    ran = vmmob(*command)
    assert (ran.code, ran.err) == (1, "")
    heading, first, second, last = ran.out.splitlines()
    assert heading.split() == ["VM", "NVE", "WHAT", "EXPECTED", "FOUND", "REPAIRED"]
    assert first.split() == ["vm1", "nve-a", "route", "10.1.0.5/32", "dev", "vmt0.0", "none", "yes"]
    assert second.split()[-1] == "no"
    assert last == f"{before}2 differences (1 repaired){after}"
    ran = vmmob(*command, "--json")
    assert (ran.code, ran.err) == (1, "")
    assert ran.json["drift"] == drift


def test_a_check_that_is_not_answered(vmmob: Vmmob, manager: FakeManager):
    manager.compared = {**manager.compared, "unanswered": ["nve-b", "nve-c"]}
    ran = vmmob("check")
    assert ran.code == 1
    assert ran.out.endswith(", 2 NVEs did not answer: nve-b, nve-c\n")
    assert vmmob("check", "--json").code == 1


def test_a_check_that_takes_long_says_so(
    vmmob: Vmmob, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vmmobility.cli.comparison.SILENT_S", 0.05)
    manager.pause_s = 0.3
    ran = vmmob("check", "--json")
    assert (ran.code, ran.json["checked"]) == (0, 3)
    assert ran.err.startswith("asking the NVEs … 0 s\n")
    ran = vmmob("check", "--timeout", "0.2")
    assert ran.code == 1
    assert "error: not ended within 0.2 s\nremedy: ask with a longer --timeout\n" in ran.err
    assert "1: something differs" in " ".join(vmmob("check", "--help").out.split())


# --- alarms ---


def test_alarms(vmmob: Vmmob, manager: FakeManager, nve: FakeNve):
    for command, service in ((("show", "alarms"), manager), (("nve", "alarms"), nve)):
        assert vmmob(*command).out == "no alarms\n"
        service.raised = [ALARM]
        heading, row = vmmob(*command).out.splitlines()
        assert heading.split() == ["ALARM", "VM", "NVE", "FOR", "S", "WHAT", "REMEDY"]
        assert row.split()[:4] == ["binding.frozen", "vm1", "nve-a", "-"]
        assert vmmob(*command, "--json").json == [ALARM]
