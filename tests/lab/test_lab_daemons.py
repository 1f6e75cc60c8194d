"""`vmmob lab run` with the real daemons, from end to end."""

from __future__ import annotations

import json
import signal

import pytest

from tests.lab.lab_command import await_line, remains
from tests.lab.recount import check

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.timeout(120)]


def test_light_chain_loses_nothing_and_the_raw_files_say_the_same(lab):
    report = lab.run("light-chain")
    assert report["summary"]["lost"] == 0
    assert [(m["from"], m["to"]) for m in report["moves"]] == [
        ("nve-a", "nve-b"),
        ("nve-b", "nve-c"),
        ("nve-c", "nve-a"),
    ]
    for move in report["moves"]:
        assert move["ok"]
        assert move["guest"]["sound"]
        assert move["tcp"]["survived"] == move["tcp"]["sessions"] == 4
        assert move["control"]["redirect_to_stop_ms"] > 0
        assert move["queue_peak"] is not None
        assert move["gap_without_cold_ms"] <= move["gap_beyond_stop_ms"]
        at = {(p["name"], p["node"]): p["at_ms"] for p in reversed(move["phases"])}
        delivering = at["forwarding local", move["to"]]
        redirect, stop = at["forwarding redirect", move["from"]], at["guest.stopped", move["from"]]
        assert delivering < redirect < stop
    # From the first move to the last every packet came by way of the home NVE, or of a redirect.
    assert all(move["relayed"] > 0 for move in report["moves"][:2])
    check(report, lab.out / "raw")
    assert "The switch, close up" in (lab.out / "r.html").read_text()


def test_adjacent_uses_a_host_route_and_one_fabric_serves_two_runs(lab):
    report = lab.run("adjacent", "--repeat", "2")
    assert (report["runs"], report["summary"]["lost"], len(report["moves"])) == (2, 0, 4)
    for move in report["moves"]:
        assert {route["via"] for route in move["routes"]} == {"local", "host-route"}


def test_daemons_that_are_killed_between_moves_come_back_and_nothing_is_lost(lab):
    report = lab.run("restarts")
    assert (report["summary"]["lost"], report["summary"]["moves_ok"]) == (0, 3)
    check(report, lab.out / "raw")


def test_a_move_to_a_dead_nve_fails_in_one_line_and_the_vm_does_not_notice(lab):
    report = lab.run("dead-destination")
    assert report["summary"]["lost"] == 0
    failed, *others = report["moves"]
    assert (failed["ok"], failed["expected"]) == (False, "fail")
    assert failed["reason"] == "the destination does not answer"
    assert failed["guest"]["sound"]
    assert failed["guest"]["stop_to_resume_ms"] is None
    assert all(probe["resume_to_echo_ms"] is None for probe in failed["probes"])
    assert all(move["ok"] for move in others)
    check(report, lab.out / "raw")


def test_moves_survive_a_lossy_and_a_cut_control_path(lab):
    report = lab.run("lossy-control")
    assert (report["summary"]["lost"], report["summary"]["moves_ok"]) == (0, 4)


LOOK_AROUND = """
[[step]]
do = "assert"
what = "command"
node = "nve-a"
command = "ip route show proto 77"
contains = "10.1.0.5"

[[step]]
do = "assert"
what = "reachable"
from = "c"
to = "vm1"

[[step]]
do = "assert"
what = "reachable"
from = "vm1"
to = "manager"

[[step]]
do = "exec"
node = "c"
command = "false"
status = 1

[[step]]
do = "assert"
what = "command"
node = "c"
command = "echo no"
contains = "yes"
"""
INLINE = """
[fabric]
router = [{name = "r"}]
nve = [{name = "nve-a", prefixes = ["10.1.0.0/24", "fd01::/64"]}]
manager = [{name = "manager"}]
correspondent = [{name = "c"}]
link = [{nodes = ["r", "nve-a"]}, {nodes = ["r", "manager"]}, {nodes = ["r", "c"]}]
vm = [{name = "vm1", kind = "netns", home = "nve-a", addresses = ["10.1.0.5", "fd01::5"]}]
"""


def test_a_scenario_with_its_own_fabric_and_an_assertion_that_fails(lab):
    (lab.out / "mine.toml").write_text(LOOK_AROUND + INLINE)
    output = lab.call(
        "run", str(lab.out / "mine.toml"), "--json", str(lab.out / "r.json"), status=1
    )
    report = json.loads((lab.out / "r.json").read_text())
    assert report["fabric"] == "mine-fabric"
    assert [step["ok"] for step in report["steps"]] == [True, True, True, False]
    assert "FAILED  run 1: command c: `echo no` in c: status 0: no" in output
    assert report["leftovers"] == []


def test_up_exec_list_and_down(lab):
    output = lab.call("up", "one-segment", "--name", "mine")
    assert "is up" in output
    listed = json.loads(lab.call("list", "--json"))
    assert [row["description"] for row in listed if row["kind"] == "running lab"] == [
        "mine, one-segment"
    ]
    near = ("exec", "--lab", "mine", "near", "--", "ping", "-c1", "-W2", "10.1.0.5")
    assert " 0% packet loss" in lab.call(*near)
    assert "known: " in lab.call("exec", "nowhere", "--", "true", status=1)
    assert "a lab named mine runs" in lab.call("up", "one-segment", "--name", "mine", status=1)
    assert remains(lab)
    lab.call("down", "mine")
    assert remains(lab) == []
    assert "no lab mine runs" in lab.call("down", "mine", status=1)


def test_ctrl_c_in_mid_move_leaves_nothing(lab):
    process = lab.start("run", "light-chain")
    await_line(process, "nve-b is prepared")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert remains(lab) == []


def test_the_next_run_sweeps_a_lab_whose_owner_was_killed_in_mid_move(lab):
    process = lab.start("run", "light-chain")
    await_line(process, "nve-b is prepared")
    process.kill()
    process.communicate(timeout=30)
    assert remains(lab)
    output = lab.call("run", "adjacent", "--keep")
    assert "swept the abandoned lab" in output
    kept = json.loads(lab.call("list", "--json"))[-1]
    assert kept["kind"] == "running lab"
    assert kept["name"] in output
    lab.call("down")
    assert remains(lab) == []


@pytest.mark.qemu
def test_hot_chain_moves_a_real_guest_without_loss(lab):
    report = lab.run("hot-chain")
    assert (report["summary"]["lost"], report["summary"]["duplicated"]) == (0, 0)
    for move in report["moves"]:
        assert move["guest"]["sound"]
        assert move["guest"]["memory_pages"]
        assert move["guest"]["downtime_ms"] > 0
        assert move["guest"]["cold_ms"] > 0
        assert move["tcp"]["survived"] == 4
    check(report, lab.out / "raw")


@pytest.mark.qemu
def test_a_disk_moves_with_its_guest_and_no_acknowledged_write_is_lost(lab):
    report = lab.run("disk-move")  # it asserts the writes after each move
    total = report["summary"]
    assert (total["moves_ok"], total["sound"], total["lost"]) == (3, 3, 0)
    assert total["tcp_survived"] == total["tcp_sessions"]


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("words", [("ping-pong", "--repeat", "2"), ("hot-dirty",),
                                   ("killed-in-mid-move",), ("neighbours",)])  # fmt: skip
def test_campaigns_lose_nothing(lab, words):
    report = lab.run(*words)
    assert report["summary"]["lost"] == 0
    assert report["summary"]["sound"] == len(report["moves"])
