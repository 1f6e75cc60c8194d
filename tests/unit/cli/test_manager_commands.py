"""The manager's tables and JSON, releases of VMs, and the record for strict mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.command_line import MANAGER_COMMANDS, TOML, Vmmob
from tests.unit.fake_services import BINDING, FakeManager


@pytest.mark.usefixtures("manager")
def test_tables(vmmob: Vmmob):
    listed = vmmob("vm", "list")
    assert listed.code == 0
    heading, row = listed.out.splitlines()
    assert heading.split() == ["VM", "NVE", "SERVER", "STATE", "GUEST", "ADDRESSES", "LAST", "MOVE"]
    assert row.split() == [
        "vm1",
        "nve-a",
        "server-1",
        "serving",
        "running",
        "10.1.0.5,",
        "fd01::5",
        "-",
    ]
    shown = vmmob("vm", "show", "vm1").out
    assert "52:54:00:00:00:01 10.1.0.5/32, fd01::5/128" in shown
    assert "nve-0 (redirects)" in shown
    assert "nve-a" in vmmob("show", "nves").out
    nves = vmmob("show", "nves").out
    assert "PROVEN  ALIVE         VMS  VCPUS FREE" in nves.splitlines()[0]
    assert "silent (2 s)" in nves
    assert "12/16" in nves
    assert nves.splitlines()[0].split()[-1] == "CORDONED"
    assert "99.5" in vmmob("show", "bindings").out
    assert "drift.route=2" in vmmob("manager", "status").out
    servers = vmmob("show", "servers").out.splitlines()
    assert servers[1].split()[:6] == ["nve-a", "server-1", "dead", "(4", "s)", "1"]
    assert "server-1" in shown
    vmmob("move", "vm1", "nve-b")
    assert vmmob("show", "moves").out.splitlines()[1].split()[:4] == ["m1", "vm1", "nve-a", "nve-b"]
    assert "nve-a -> nve-b (requested)" in vmmob("vm", "list").out


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize("command", MANAGER_COMMANDS, ids=" ".join)
def test_every_managers_command_has_json(vmmob: Vmmob, command: list[str]):
    ran = vmmob(*command, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert isinstance(ran.json, list | dict)


@pytest.mark.usefixtures("manager")
def test_json_is_the_apis_answer(vmmob: Vmmob):
    assert vmmob("show", "bindings", "--json").json == [BINDING]
    assert vmmob("vm", "show", "0/vm1", "--json").json == {
        **BINDING,
        "move": None,
        "lifecycle": None,
        "protection": None,
    }


@pytest.mark.usefixtures("manager")
def test_names_in_brackets_are_no_markup(vmmob: Vmmob, service: FakeManager):
    service.held = [{**BINDING, "vm": "[red]vm[/red]", "vni": 7, "state": "x" * 300}]
    out = vmmob("vm", "list").out
    assert "7/[red]vm[/red]" in out
    assert "x" * 300 in out


@pytest.mark.usefixtures("manager")
def test_errors_are_two_lines(vmmob: Vmmob):
    ran = vmmob("vm", "show", "other")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == ("error: no binding for VM other\nremedy: list them with `vmmob vm list`\n")
    assert vmmob("vm", "show", "vm1", "--vni", "3").err.startswith("error: no binding for VM 3/vm1")
    assert vmmob("move", "vm1", "nve-a").code == 1


# --- releases ---


def test_a_vm_is_released_only_with_the_operators_word(vmmob: Vmmob, manager: FakeManager):
    manager.held = [{**BINDING, "state": "expired"}]
    refused = vmmob("vm", "release", "vm1")
    assert refused.code == 1
    assert "--fenced NVE" in refused.err
    assert "is at nve-a, not at nve-b" in vmmob("vm", "release", "vm1", "--fenced", "nve-b").err
    assert manager.held[0]["state"] == "expired"
    released = vmmob("vm", "release", "vm1", "--fenced", "nve-a")
    assert released.out == "vm1 is released from nve-a: start it elsewhere\n"
    assert manager.held[0]["state"] == "released"
    assert "lease lives" in vmmob("vm", "release", "vm1", "--fenced", "nve-a").err
    manager.held = [{**BINDING, "state": "moving"}]
    assert "waited for no more" in vmmob("vm", "release", "vm1", "--fenced", "nve-a").out
    assert "may still run the VM" in " ".join(vmmob("vm", "release", "--help").out.split())
    assert vmmob("vm", "release", "vm1", "--fenced").code == 2  # whose host, must be said


def test_a_frozen_vm_is_thawed(vmmob: Vmmob, manager: FakeManager):
    manager.held = [{**BINDING, "state": "frozen"}]
    assert "frozen" in vmmob("vm", "list").out
    assert "frozen" in vmmob("show", "bindings").out
    thawed = vmmob("vm", "release", "vm1")
    assert thawed.out == "vm1 is thawed: it is serving at nve-a, and NVEs may register it again\n"
    manager.held = [{**BINDING, "state": "frozen"}]
    assert vmmob("vm", "release", "vm1", "--json").json["state"] == "serving"


# --- strict mode ---


def test_a_vm_is_onboarded(vmmob: Vmmob, manager: FakeManager, tmp_path: Path):
    file = tmp_path / "vm.toml"
    file.write_text(TOML)
    assert vmmob("vm", "onboard", file).out == "vm1: onboarded at any NVE\n"
    ran = vmmob("vm", "onboard", file, "--nve", "nve-a", "--nve", "nve-b")
    assert ran.out == "vm1: onboarded at nve-a, nve-b\n"
    heading, row = vmmob("show", "onboarded").out.splitlines()
    assert heading.split() == ["VM", "MACS", "ADDRESSES", "NVES"]
    assert row.split() == ["vm1", "52:54:00:00:00:01", "10.1.0.5,", "fd01::5", "nve-a,", "nve-b"]
    (record,) = vmmob("show", "onboarded", "--json").json
    assert record["interfaces"] == [
        {"mac": "52:54:00:00:00:01", "addresses": ["10.1.0.5", "fd01::5"]}
    ]
    assert vmmob("vm", "offboard", "vm1").out == "vm1: offboarded\n"
    assert vmmob("show", "onboarded", "--json").json == []
    again = vmmob("vm", "offboard", "vm1")
    assert (again.code, again.out) == (1, "")
    assert "error: VM vm1 is not onboarded\nremedy: " in again.err


@pytest.mark.usefixtures("manager")
def test_a_vm_that_cannot_be_onboarded(vmmob: Vmmob, tmp_path: Path):
    file = tmp_path / "vm.toml"
    file.write_text('vm_id = "vm1"')
    assert "at least one [[interface]]" in vmmob("vm", "onboard", file).err
    file.write_text(TOML)
    assert "no NVE nowhere" in vmmob("vm", "onboard", file, "--nve", "nowhere").err
    assert "no NVE-ID" in vmmob("vm", "onboard", file, "--nve", "a b").err
    assert "vni: is not a whole number" in vmmob("vm", "onboard", _with(file, 'vni = "x"')).err
    assert "cannot be read" in vmmob("vm", "onboard", tmp_path / "none").err


def _with(file: Path, line: str) -> Path:
    file.write_text(f"{line}\n{file.read_text()}")
    return file
