"""What no restart, outage, other hand or old message may do, on the real kernel: scenarios.

What each must hold is asserted in the scenario itself; here, that it does, and what the report
says of it.  Not here: moves that go well (test_lab_daemons.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.lab.lab_command import Lab, await_line, remains

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.timeout(180)]


def lost_by(report, *vms):
    return sum(s["lost"] for s in report["streams"] if s["vm"] in vms)


def check_restarts(report, rounds):
    """Every restart of the manager is measured: fork, then API, then the first accepted answer."""
    mine = [restart for restart in report["restarts"] if restart["node"] == "manager"]
    summary = report["summary"]["manager_restarts"]
    assert summary["count"] == len(mine) == rounds
    for restart in mine:
        assert restart["api_ms"] > 0
        assert 0 < restart["message_ms"] <= restart["answer_ms"]
        assert 0 < restart["asked_ms"] <= restart["answer_ms"]
    worst = max(restart["answer_ms"] for restart in mine)
    assert summary["restart_to_first_answer_ms"]["max"] == worst


def test_restarts_of_everything_cost_a_resting_vm_nothing(lab: Lab) -> None:
    report = lab.run("restart-everything-light")
    streams = report["summary"]["streams"]
    assert (streams["lost_at_rest"], streams["tcp_survived"]) == (0, 12)
    assert streams["sent_at_rest"] > 5_000
    assert {stream["vm"] for stream in report["streams"]} == {"vm1", "at-home", "in-chain"}
    assert streams["sent"] == sum(stream["sent"] for stream in report["streams"]) > 10_000
    check_restarts(report, 3)
    assert len(report["restarts"]) == 12


def test_a_manager_that_is_away_for_two_lifetimes_changes_nothing(lab: Lab) -> None:
    report = lab.run("manager-outage")
    assert report["summary"]["streams"]["lost"] == 0
    check_restarts(report, 1)


def test_a_stale_nve_is_told_when_it_is_back_and_loops_nothing(lab: Lab) -> None:
    report = lab.run("stale-nve")
    assert report["summary"]["streams"]["lost"] == 0
    assert {stream["correspondent"] for stream in report["streams"]} == {"near", "far", "resident"}


def test_a_reimaged_nve_gets_back_in_and_the_past_is_dropped(lab: Lab) -> None:
    report = lab.run("reimaged-nve")
    assert lost_by(report, "elsewhere") == 0
    assert lost_by(report, "vm1") > 0, "its home NVE was dark: the lab has seen nothing"
    replays = [step for step in report["steps"] if step["assert"] == "replay-dropped"]
    assert [step["ok"] for step in replays] == [True, True]


@pytest.mark.qemu
def test_the_nves_follow_a_guest_that_other_hands_move(lab: Lab) -> None:
    report = lab.run("unmanaged-move")
    assert [(m["from"], m["to"]) for m in report["by_hand"]] == [
        ("nve-a", "nve-b"),
        ("nve-b", "nve-a"),
    ]
    for move in report["by_hand"]:
        assert move["ok"]
        assert move["tcp_survived"]
        assert move["stop_to_resume_ms"] > 0
        assert move["resume_to_local_ms"] > 0
        assert move["resume_to_redirect_ms"] is not None
        assert move["sent"] > move["lost"]
    assert report["summary"]["by_hand"]["lost"] == sum(m["lost"] for m in report["by_hand"])
    assert "migrations" in (lab.out / "output.txt").read_text()


@pytest.mark.qemu
def test_a_tug_of_war_is_frozen_and_a_second_copy_paused(lab: Lab) -> None:
    report = lab.run("tug-of-war")
    assert len(report["by_hand"]) == 6
    assert report["summary"]["streams"]["tcp_survived"] == 4


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.timeout(600)
def test_restarts_of_everything_cost_a_real_guest_nothing(lab: Lab) -> None:
    report = lab.run("restart-everything", "--repeat", "3")
    assert report["summary"]["streams"]["lost_at_rest"] == 0
    check_restarts(report, 9)


@pytest.mark.slow
def test_daemons_and_helpers_killed_at_once_leave_what_is_at_home_alone(lab: Lab) -> None:
    report = lab.run("restart-both")
    assert lost_by(report, "at-home") == 0
    assert report["summary"]["streams"]["tcp_survived"] == 8


@pytest.mark.qemu
def test_ctrl_c_ends_guests_that_hands_have_started(lab: Lab) -> None:
    process = lab.start("run", "tug-of-war")
    await_line(process, "start-by-hand vm1 at nve-c: done")
    assert any("qemu-system" in line and "/hand/vm1/" in line for line in remains(lab))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert remains(lab) == []


def test_ctrl_c_leaves_nothing_of_a_dark_host(lab: Lab) -> None:
    process = lab.start("run", "reimaged-nve")
    await_line(process, "nve-a's host is dark")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert remains(lab) == []


FABRIC = """
[fabric]
router = [{name = "r"}]
nve = [{name = "nve-a", prefixes = ["10.1.0.0/24", "fd01::/64"]}]
manager = [{name = "manager"}]
correspondent = [{name = "c"}]
link = [{nodes = ["r", "nve-a"]}, {nodes = ["r", "manager"]}, {nodes = ["r", "c"]}]
vm = [
  {name = "vm1", kind = "netns", home = "nve-a", addresses = ["10.1.0.5", "fd01::5"]},
  {name = "hand", kind = "external", home = "nve-a", addresses = ["10.1.0.6", "fd01::6"]},
]
"""
PROBE = '[[probe]]\nfrom = "c"\nto = "vm1"\n'
REFUSED = """
[[step]]
do = "lose-state"
node = "nve-a"
"""
EXPECTED_REFUSAL = """
[[step]]
do = "start-by-hand"
vm = "hand"
nve = "nve-a"
error = "no tap"
[[step]]
do = "vmmob"
node = "manager"
command = "vm show nobody"
status = 1
"""


@pytest.mark.qemu
def test_expected_refusals_are_no_failures_and_others_end_the_run(lab: Lab) -> None:
    (lab.out / "mine.toml").write_text(PROBE + EXPECTED_REFUSAL + REFUSED + FABRIC)
    words = ("run", str(lab.out / "mine.toml"), "--json", str(lab.out / "r.json"))
    output = " ".join(lab.call(*words, status=1).split())
    assert "start-by-hand hand at nve-a is refused: hand at nve-a: no tap" in output
    report = json.loads((lab.out / "r.json").read_text())
    assert report["leftovers"] == []
    (failure,) = report["failures"]
    assert "nve-a runs: its state is in use" in failure


def test_a_daemon_that_ends_by_itself_ends_the_run(lab: Lab) -> None:
    steps = '[[step]]\ndo = "wait"\nseconds = 60\n'
    (lab.out / "mine.toml").write_text(steps + FABRIC)
    process = lab.start("run", str(lab.out / "mine.toml"))
    await_line(process, "correspondents talk")
    table = subprocess.run(["ps", "axwwo", "pid,args"], capture_output=True, text=True, check=True)
    (manager,) = [
        line.split()[0]
        for line in table.stdout.splitlines()
        if f"{lab.folder}/" in line and "manager run" in line and "ip netns" not in line
    ]
    os.kill(int(manager), signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "manager has ended by itself, status -9" in output
    assert remains(lab) == []
