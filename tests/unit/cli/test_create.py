"""`vmmob vm create|confirm`: the three steps as people type them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.command_line import Vmmob
from tests.unit.fake_services import FakeManager

FILE = """
vm_id = "web1"
kind = "netns"
[resources]
vcpus = 2
memory_mib = 512
[placement]
nves = ["nve-b"]
[[interface]]
mac = "52:54:00:00:00:09"
addresses = ["10.1.0.9/32"]
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "web1.toml"
    path.write_text(FILE)
    return str(path)


def test_an_offer_is_told_and_taken(vmmob: Vmmob, manager: FakeManager, file: str):
    offered = vmmob("vm", "create", file, "--key", "k")
    assert offered.code == 0
    assert "web1: offered at nve-b: 2 vCPUs, 512 MiB of memory, 0 MiB of storage" in offered.out
    assert "confirm it within 60 s: vmmob vm confirm web1" in offered.out
    listed = vmmob("vm", "list").out
    assert "offered" in listed
    assert "unbound" in vmmob("vm", "show", "web1").out
    taken = vmmob("vm", "confirm", "web1", "--memory-mib", "256", "--wait")
    assert taken.out.splitlines()[0] == "web1: running at nve-b"
    assert "256 MiB of memory" in taken.out
    assert manager.asked_for["web1"]["client_key"] == "k"


def test_both_steps_at_once_as_json(vmmob: Vmmob, manager: FakeManager, file: str):
    ran = vmmob("vm", "create", file, "--confirm", "--wait", "--json")
    assert ran.code == 0
    assert (ran.json["state"], ran.json["offer"]) == ("running", None)
    assert len(ran.json["client_key"]) == 32, "one of its own"


def test_what_failed_is_an_error_with_a_remedy(vmmob: Vmmob, manager: FakeManager, file: str):
    vmmob("vm", "create", file)
    manager.asked_for["web1"] |= {"state": "failed", "offer": None, "reason": "no such kernel"}
    ran = vmmob("vm", "create", file, "--key", "again")
    assert ran.code == 1
    assert "error: web1 failed: no such kernel" in ran.err
    assert "vmmob vm confirm web1" in ran.err


def test_a_rejection_says_what_was_short(vmmob: Vmmob, manager: FakeManager, tmp_path: Path):
    path = tmp_path / "huge.toml"
    path.write_text(FILE.replace("web1", "huge"))
    ran = vmmob("vm", "create", str(path))
    assert ran.code == 1
    assert "9 vCPUs wanted, 1 free" in ran.err
    assert vmmob("vm", "confirm", "huge").code == 1


def test_waiting_for_an_offer_alone_is_wrong_usage(vmmob: Vmmob, file: str):
    assert vmmob("vm", "create", file, "--wait").code == 2
