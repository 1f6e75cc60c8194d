"""Flows to a load-shared group in the lab: records, phases, reports, and fabrics that have one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmobility.errors import LabError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import scenario as scenarios
from vmmobility.lab.flows import FlowRecord, changes, longest_gap_ms, read_flows, report
from vmmobility.lab.report_flows import FlowsReport
from vmmobility.lab.scenario import load_scenario
from vmmobility.lab.step_types import Assertion

MS = 1_000_000
RECORD = f"""\
s,0,{1 * MS}
r,0,{2 * MS},web1
s,1,{1 * MS}
r,1,{3 * MS},web2
r,0,{12 * MS},web1
s,0,{21 * MS}
r,0,{22 * MS},web2
r,1,{23 * MS},web2
r,0,2"""


@pytest.fixture
def flows(tmp_path: Path) -> dict[int, FlowRecord]:
    (tmp_path / "ipv4.flows").write_text(RECORD)
    return read_flows(tmp_path / "ipv4.flows")


def test_a_record_is_read_but_for_its_unfinished_line(flows, tmp_path):
    assert flows[0].sent == [1 * MS, 21 * MS]
    assert flows[0].answers == [(2 * MS, "web1"), (12 * MS, "web1"), (22 * MS, "web2")]
    assert [name for _, name in flows[1].answers] == ["web2", "web2"]
    assert read_flows(tmp_path / "none") == {}


def test_a_change_is_an_answer_by_another_than_before(flows):
    assert [changes(flows[n], 0, 30 * MS) for n in (0, 1)] == [1, 0]
    assert changes(flows[0], 0, 20 * MS) == 0


def test_a_phase_says_who_has_the_flows_and_when_they_turned(flows):
    found = report(1, "dark", "outside", "ipv4", list(flows.values()), (10 * MS, 30 * MS))
    assert (found.before, found.after) == ({"web1": 1, "web2": 1}, {"web2": 2})
    assert (found.turned, found.last_turned_ms, found.changes) == (1, 12.0, 1)
    assert found.longest_gap_ms == 13.0
    assert longest_gap_ms(flows[0], 10 * MS, 30 * MS) == 10.0
    line = "flows, dark, outside ipv4: web2 2 of 2; 1 turned, the last at 12 ms; "
    assert found.line() == line + "1 changes, longest gap 13 ms"


def test_a_report_without_flows_does_not_speak_of_them(flows):
    assert FlowsReport().as_json() == {}
    assert FlowsReport().lines() == []
    one = report(1, "dark", "outside", "ipv4", list(flows.values()), (0, 30 * MS))
    both = FlowsReport((one,)) + FlowsReport((one,))
    assert [row["phase"] for row in both.as_json()["flows"]] == ["dark", "dark"]


def shared() -> fabrics.Fabric:
    return fabrics.load_fabric(fabrics.find("two-dc-shared-light"))


def test_members_share_their_addresses_and_no_home():
    fabric = shared()
    assert [group.vms for group in fabric.groups] == [("web1", "web2")]
    one, other = (fabric.vm(name) for name in fabric.groups[0].vms)
    assert one.addresses == other.addresses
    assert one.home != other.home
    assert one.mac != other.mac


def a_fabric(*vms: str, group: str = '["web1", "web2"]') -> str:
    nodes = "".join(
        f'[[nve]]\nname = "nve-{n}"\nprefixes = ["10.{n}.0.0/24", "fd0{n}::/64"]\n' for n in (1, 2)
    )
    link = '[[link]]\nnodes = ["nve-1", "nve-2"]\n'
    return f'{nodes}{link}[[group]]\nname = "web"\nvms = {group}\n' + "".join(vms)


def a_vm(name: str, home: int, host: int = 5, kind: str = "netns") -> str:
    return (
        f'[[vm]]\nname = "{name}"\nkind = "{kind}"\nhome = "nve-{home}"\n'
        f'addresses = ["10.1.0.{host}", "fd01::{host}"]\n'
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (a_fabric(a_vm("web1", 1)), "name several VMs"),
        (a_fabric(a_vm("web1", 1), a_vm("web2", 2, 6)), "differ"),
        (a_fabric(a_vm("web1", 1), a_vm("web2", 2, kind="guest")), "differ"),
        (a_fabric(a_vm("web1", 1), a_vm("web2", 1)), "at one NVE"),
        (a_fabric(a_vm("web1", 1), a_vm("web2", 2), a_vm("else", 1)), "used twice"),
    ],
)
def test_what_is_no_group_is_refused(tmp_path: Path, text: str, words: str):
    (tmp_path / "f.toml").write_text(text)
    with pytest.raises(LabError) as found:
        fabrics.load_fabric(tmp_path / "f.toml")
    assert words in f"{found.value.message} {found.value.remedy}"


def test_the_scenario_asserts_of_flows():
    steps = load_scenario(scenarios.find("load-shared")).steps
    asserted = [step.what for step in steps if isinstance(step, Assertion)]
    assert set(asserted) >= {"flows-at", "flows-stay"}
