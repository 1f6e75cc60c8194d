"""The NVE's commands: guests of its own, and guests that other hands run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.command_line import NVE_COMMANDS, TOML, Vmmob
from tests.unit.fake_services import FakeNve


def test_a_vm_is_started_and_stopped(vmmob: Vmmob, nve: FakeNve, tmp_path: Path):
    (tmp_path / "vm.toml").write_text(TOML)
    ran = vmmob("nve", "start", tmp_path / "vm.toml")
    assert (ran.code, ran.out) == (0, "vm1: serving, epoch 1\n")
    body = {
        "vm_id": "vm1",
        "kind": "qemu",
        "vcpus": 2,
        "memory_mib": 64,
        "machine": {"kernel": "/boot/vmlinuz"},
        "interfaces": [{"mac": "52:54:00:00:00:01", "addresses": ["10.1.0.5", "fd01::5"]}],
    }
    assert nve.definitions == [body]
    (tmp_path / "vm.json").write_text(json.dumps(body))
    assert vmmob("nve", "start", tmp_path / "vm.json", "--json").json["phase"] == "serving"
    assert nve.definitions == [body, body]
    assert "delivered=5" in vmmob("nve", "list").out
    assert "too_big=2" in vmmob("nve", "list").out
    shown = vmmob("nve", "status").out
    assert "tcg" in shown
    for words in (
        "tunnels         relay",
        "tunnels, why    no ipip here",
        "tunnels, cost   one process",
    ):
        assert words in shown
    assert vmmob("nve", "status", "--json").json["tunnels"]["back_end"] == "relay"
    shown = vmmob("show", "tunnels").out
    assert [line.split() for line in shown.splitlines()] == [
        ["back_end", "relay"],
        ["why", "no", "ipip", "here"],
        ["cost", "one", "process"],
    ]
    for command in NVE_COMMANDS:
        assert vmmob(*command, "--json").code == 0
    assert vmmob("nve", "stop", "vm1").code == 1
    vmmob("nve", "start", tmp_path / "vm.toml", "--server", "server-1")
    assert vmmob("nve", "list", "--json").json[0]["server"] == "server-1"
    assert vmmob("nve", "relocate", "vm1", "server-2").out == "vm1: at server-2\n"
    assert vmmob("nve", "relocate", "vm9", "server-2").code == 1
    assert vmmob("nve", "stop", "vm1").out == "vm1: stopped\n"


def test_the_data_centres_prefixes_are_said(vmmob: Vmmob, nve: FakeNve):
    shown = vmmob("nve", "status").out
    assert "not configured, every sender counts as inside" in shown
    assert vmmob("nve", "status", "--json").json["dc_prefixes"] == []
    nve.dc_prefixes = ["10.0.0.0/8", "fd00::/8"]
    assert "10.0.0.0/8, fd00::/8" in vmmob("nve", "status").out


@pytest.mark.parametrize(
    ("name", "text"),
    [("vm.toml", "vm_id"), ("vm.json", "{"), ("vm.json", "[]"), ("vm.toml", 'kind = "x"'),
     ("vm.toml", "vm_id = 7"), ("vm.json", "[" * 100_000), ("none", None)],
)  # fmt: skip
def test_a_wrong_definition(vmmob: Vmmob, tmp_path: Path, name: str, text: str | None):
    if text is not None:
        (tmp_path / name).write_text(text)
    ran = vmmob("nve", "start", tmp_path / name)
    assert ran.code == 1
    assert f"error: {tmp_path / name}: " in ran.err
    assert "remedy: " in ran.err


def test_a_guest_is_expected_and_forgotten(vmmob: Vmmob, nve: FakeNve, tmp_path: Path):
    file = tmp_path / "vm.toml"
    file.write_text(TOML)
    refused = vmmob("nve", "expect", file)
    assert refused.code == 1
    assert "vmmob nve start" in refused.err
    file.write_text(TOML.replace('"qemu"', '"external"'))
    heading, row = vmmob("nve", "expect", file).out.splitlines()
    assert heading.split() == ["VM", "PHASE", "PORTS"]
    assert row.split() == ["vm1", "expected", "vmt0.0"]
    assert vmmob("nve", "expect", file, "--json").json["ports"] == ["vmt0.0"]
    assert vmmob("nve", "list").out.splitlines()[1].split()[:2] == ["vm1", "expected"]
    assert vmmob("nve", "forget", "vm1").out == "vm1: expected no longer\n"
    assert vmmob("nve", "forget", "vm1").code == 1
    vmmob("nve", "expect", file)
    assert vmmob("nve", "forget", "vm1", "--json").json["vm"] == "vm1"
