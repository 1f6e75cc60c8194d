"""Scenarios: built-in ones, every step, mistakes."""

from __future__ import annotations

import signal

import pytest

from vmmobility.errors import LabError
from vmmobility.lab import scenario as scenarios
from vmmobility.lab.correspondents import Pair
from vmmobility.lab.step_types import (
    Assertion,
    Exec,
    Fault,
    Guest,
    Kill,
    LoseState,
    Move,
    Pause,
    Power,
    Remember,
    Repeat,
    Replay,
    Start,
)

HEAD = 'fabric = "three-racks-light"\n'
# Their VM does not run while it is moved, by commands; what reaches it is judged after its start.
COLD = {"cold-move", "cold-move-light"}
AWAY = {
    "unmanaged-move",
    "unmanaged-inter-dc",
    "tug-of-war",
    "reimaged-nve",
    "napt-overlap",
    "drain-few",
    "drain-light",
    "drain-guests",
}  # moved by other hands, lost or refused; a host that is emptied
WARM = {"warm-failover", "warm-failover-light", "warm-partition", "warm-partition-light"}
# Their VM's host dies or is cut off: much is lost, and it is judged who ran when and with what.
SHARED = {"load-shared"}  # nobody moves; it judges flows, and a host that dies loses some
TALKATIVE = {"stale-nve"}  # a resident of the old NVE talks on: its redirect has traffic


def load(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + text)
    return scenarios.load_scenario(path)


@pytest.mark.parametrize("name", sorted(set(scenarios.built_in()) - SHARED - WARM))
def test_every_built_in_scenario_is_right_and_judges(name):
    found = scenarios.load_scenario(scenarios.find(name))
    assert found.description
    judged = {step.what for step in found.steps if isinstance(step, Assertion)}
    assert {"no-loss", "no-broken-tcp"} <= judged or name in COLD


@pytest.mark.parametrize("name", sorted(set(scenarios.built_in()) - AWAY - SHARED - COLD - WARM))
def test_scenarios_that_the_manager_moves_in_end_at_home(name):
    found = scenarios.load_scenario(scenarios.find(name))
    assert [move.to for move in found.moves()][-1] == found.fabric.vm("vm1").home
    judged = {step.what for step in found.steps if isinstance(step, Assertion)}
    assert {"only-serving-route"} <= judged or name in TALKATIVE


@pytest.mark.parametrize("name", sorted(WARM))
def test_scenarios_of_standbys_judge_who_runs(name):
    found = scenarios.load_scenario(scenarios.find(name))
    assert found.description
    judged = [step.what for step in found.steps if isinstance(step, Assertion)]
    assert judged.count("taken-over") == 2
    assert {"runs-at", "reachable", "direct-path"} <= set(judged)


def test_the_chain_moves_a_b_c_a():
    found = scenarios.load_scenario(scenarios.find("hot-chain"))
    assert [move.to for move in found.moves()] == ["nve-b", "nve-c", "nve-a"]
    assert found.probes == (Pair("near", "vm1"), Pair("far", "vm1"))
    assert found.fabric.vm("vm1").kind == "guest"


def test_ping_pong_moves_twenty_times():
    assert len(list(scenarios.load_scenario(scenarios.find("ping-pong")).moves())) == 20


def test_every_step_is_read(tmp_path):
    found = load(
        tmp_path,
        """
[[probe]]
from = "near"
to = "vm1"
[[step]]
do = "move"
vm = "vm1"
to = "nve-b"
wait = false
expect = "fail"
[[step]]
do = "wait"
seconds = 1
[[step]]
do = "wait"
until = "event"
event = "move.copying"
[[step]]
do = "kill"
node = "nve-b"
[[step]]
do = "restart"
node = "manager"
[[step]]
do = "cut"
link = "core--rack-a"
seconds = 0.5
[[step]]
do = "loss"
link = "rack-a--core"
percent = 2.5
[[step]]
do = "heal"
link = "core--rack-a"
[[step]]
do = "repeat"
times = 2
[[step.step]]
do = "assert"
what = "route"
node = "rack-a"
vm = "vm1"
via = "none"
""",
    )
    assert found.steps == (
        Move("vm1", "nve-b", False, "fail"),
        Pause(1.0),
        Assertion("event", 30.0, event="move.copying"),
        Kill(("nve-b",), signal.SIGKILL),
        Start(("manager",), True),
        Fault("core--rack-a", 1000, 0.5),
        Fault("core--rack-a", 25),
        Fault("core--rack-a", 0),
        Repeat(2, (Assertion("route", 0.0, "vm1", "rack-a", "none"),)),
    )


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ('[[step]]\ndo = "mve"\n', "step 1: `do` is 'mve'", "move"),
        ('[[step]]\ndo = "move"\nvm = "vm1"\nto = "nve-x"\n', "`to` is 'nve-x'", "nve-a"),
        ('[[step]]\ndo = "move"\nvm = "vm1"\nto = "nve-a"\nwaits = true\n', "`waits`", "`wait`"),
        ('[[step]]\ndo = "cut"\nlink = "a--b"\n', "no link 'a--b'", "core--rack-a"),
        ('[[step]]\ndo = "kill"\nnode = "core"\n', "`node` is 'core'", "manager"),
        ('[[step]]\ndo = "loss"\nlink = "core--rack-a"\npercent = 101\n', "percent", "at most"),
        ('[[probe]]\nfrom = "core"\nto = "vm1"\n', "`from` is 'core'", "near"),
        ('[[step]]\ndo = "kill"\nnode = "manager"\nprocess = "relay"\n', "no relay", "NVEs"),
        ('[[step]]\ndo = "start"\nnodes = ["nve-a", "nve-a"]\n', "`nodes`", "once"),
        ('[[step]]\ndo = "power-off"\nnode = "manager"\n', "`node` is 'manager'", "nve-a"),
        ('[[step]]\ndo = "expect"\nvm = "vm1"\nnve = "nve-a"\n', "not external", "kind"),
        ('[[step]]\ndo = "replay"\nfrom = "moon"\n', "`from` is 'moon'", "core"),
        ('[[step]]\ndo = "assert"\nwhat = "no-loss"\nfrom = "core"\n', "`from` is", "near"),
        ('[[step]]\ndo = "assert"\nwhat = "no-los"\n', "`what` is 'no-los'", "no-loss"),
    ],
)
def test_mistakes_name_the_place_and_the_remedy(tmp_path, text, message, remedy):
    with pytest.raises(LabError) as caught:
        load(tmp_path, text)
    assert "mine.toml" in caught.value.message
    assert message in caught.value.message
    assert remedy in caught.value.remedy


EXTERNAL = """
[fabric]
like = "three-racks-light"
timers = { lifetime_s = 4, drain_s = 1.5 }
vm = [{name = "vm1", kind = "external", home = "nve-a", addresses = ["10.1.0.5", "fd01::5"]}]
"""


def test_the_steps_for_hosts_and_hands_are_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
[[step]]
do = "remember"
[[step]]
do = "kill"
nodes = ["nve-a", "nve-b"]
process = "both"
[[step]]
do = "power-off"
node = "nve-a"
[[step]]
do = "lose-state"
node = "nve-a"
[[step]]
do = "power-on"
node = "nve-a"
[[step]]
do = "cut"
link = "core--rack-a"
only = "control"
[[step]]
do = "replay"
from = "core"
[[step]]
do = "vmmob"
node = "manager"
command = "vm release vm1"
[[step]]
do = "expect"
vm = "vm1"
nve = "nve-b"
[[step]]
do = "migrate-by-hand"
vm = "vm1"
to = "nve-b"
error = "no"
[[step]]
do = "assert"
what = "binding"
vm = "vm1"
nve = "nve-b"
state = "frozen"
[[step]]
do = "assert"
what = "hops"
from = "near"
to = "vm1"
max = 4
[[step]]
do = "assert"
what = "redirects"
vm = "vm1"
node = "nve-a"
to = "nve-b"
"""
        + EXTERNAL
    )
    found = scenarios.load_scenario(path)
    assert found.steps == (
        Remember(),
        Kill(("nve-a", "nve-b"), signal.SIGKILL, "both"),
        Power("nve-a", on=False),
        LoseState("nve-a"),
        Power("nve-a", on=True),
        Fault("core--rack-a", 1000, control_only=True),
        Replay("core"),
        Exec("manager", ("vm", "release", "vm1"), 0, vmmob=True),
        Guest("expect", "vm1", "nve-b"),
        Guest("migrate-by-hand", "vm1", "nve-b", "no"),
        Assertion("binding", 0.0, "vm1", "nve-b", state="frozen"),
        Assertion("hops", 0.0, "vm1", source="near", maximum=4),
        Assertion("redirects", 0.0, "vm1", "nve-a", target="nve-b"),
    )
    assert dict(found.fabric.timers) == {"drain_s": 1.5, "lifetime_s": 4, "step_s": 15.0}
    assert found.probes == (Pair("near", "vm1"), Pair("far", "vm1"))  # moved by hand, not resting


def test_a_fabric_can_stand_in_the_scenario_or_beside_it(tmp_path):
    (tmp_path / "net.toml").write_text(
        '[[router]]\nname = "r"\n[[correspondent]]\nname = "c"\n[[link]]\nnodes = ["r", "c"]\n'
    )
    (tmp_path / "s.toml").write_text('fabric = "net.toml"\n')
    assert scenarios.load_scenario(tmp_path / "s.toml").fabric.name == "net"
    (tmp_path / "t.toml").write_text(
        '[fabric]\nrouter = [{name = "r"}]\ncorrespondent = [{name = "c"}]\n'
        'link = [{nodes = ["r", "c"]}]\n'
    )
    assert len(scenarios.load_scenario(tmp_path / "t.toml").fabric.nodes) == 2


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(LabError, match="hot-chain"):
        scenarios.find("hot-chian")
