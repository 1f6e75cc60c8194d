"""Real daemons on either side of two real NAPT boxes: attach, refresh, move, restart."""

from __future__ import annotations

import json
import signal

import pytest

from tests.daemon.dialogues import Dialogue
from tests.daemon.napt_fabric import PRIVATE, VM, NaptFabric, napt_fabric

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400), pytest.mark.slow]


def test_a_vm_registers_and_moves_across_two_boxes() -> None:
    with napt_fabric() as live:
        public = registered(live)
        live.echoes_at(public)
        refreshed(live)
        people_see_it(live, public)
        live.move("nve-b")
        moved(live, public)
        live.echoes_at(public)
        live.kill("napt-2", signal.SIGKILL)
        live.start("napt-2")
        live.move("nve-a")
        live.eventually(
            lambda: live.mappings("napt-1")[PRIVATE]["holder"] == "", "its box knows it home"
        )
        assert live.mappings("napt-1")[PRIVATE]["public"] == public
        live.echoes_at(public)
        assert "bad-origin" not in live.status("manager")["drops"]


def registered(live: NaptFabric) -> str:
    """The VM is bound with public addresses; its public one."""
    with live.manager() as client:
        [binding] = client.bindings()
    row = live.mappings("napt-1")[PRIVATE]
    public = str(row["public"])
    prefixes = [a for i in binding["interfaces"] for a in i["addresses"]]
    assert f"{public}/32" in prefixes or public in prefixes, binding
    assert any("fd01::5" in a for a in prefixes), "IPv6 is its own"
    locator = live.address("nve-a")
    assert live.mappings("napt-1")[locator]["nve"] == "nve-a"
    status = live.status_of_box("napt-1")
    assert (status["nves"], status["vms"], status["unproven"]) == (1, 1, [])
    return public


def refreshed(live: NaptFabric) -> None:
    """A refresh crosses: the mapping's time, which only falls, has risen."""
    seen = [float(live.mappings("napt-1")[PRIVATE]["due_s"])]

    def risen() -> bool:
        seen.append(float(live.mappings("napt-1")[PRIVATE]["due_s"]))
        return seen[-1] > seen[-2]

    live.eventually(risen, "a refresh has crossed", 15.0)


def people_see_it(live: NaptFabric, public: str) -> None:
    """The commands, as people type them, and as programs do."""
    socket = str(live.daemons.socket("napt-1"))
    listed = live.vmmob("napt", "list", "--socket", socket)
    assert (listed.returncode, listed.stderr) == (0, "")
    [row] = [line.split() for line in listed.stdout.splitlines() if VM in line]
    assert row == ["vm", VM, PRIVATE, public, "napt-1", "translated", "here"]
    for words in (("list",), ("status",), ("check",)):
        answer = live.vmmob("napt", *words, "--socket", socket, "--json")
        assert answer.returncode == 0, answer
        assert json.loads(answer.stdout)
    status = live.vmmob("napt", "status", "--socket", socket)
    assert "pool_free" in status.stdout
    with live.manager() as client:
        nve, _ = client.nves()
        [binding] = client.bindings()
    assert binding["mappings"] == [{"box": "napt-1", "private": PRIVATE, "public": public}]
    assert nve["via"] == "napt-1"


def moved(live: NaptFabric, public: str) -> None:
    assert PRIVATE in live.kernel("nve-b"), "the VM keeps its own address"
    assert public not in live.kernel("nve-b")
    live.eventually(
        lambda: live.mappings("napt-1")[PRIVATE]["holder"] == "napt-2", "the owner knows it away"
    )
    row = live.mappings("napt-2")[PRIVATE]
    assert (row["vm"], row["public"], row["owner"], row["state"]) == (
        VM,
        public,
        "napt-1",
        "detour",
    )


def test_a_mapping_is_handed_over_to_the_other_box_and_back() -> None:
    """What lived before lives on, and what begins in between lives, before and after the public
    route has turned."""
    with napt_fabric("hand-over") as live:
        public = registered(live)
        live.echoes_at(public)
        flows = live.dialogues(public, "before the move")
        speak(flows)
        live.move("nve-b")
        handed_over(live, "napt-1", "napt-2")
        flows += live.dialogues(public, "while its route leads to the old box")
        speak(flows)
        live.lead(public, "napt-2")
        flows += live.dialogues(public, "when its route had turned")
        speak(flows)
        live.echoes_at(public)
        live.move("nve-a")
        live.eventually(
            lambda: live.mappings("napt-1")[PRIVATE]["state"] == "translated", "it has it back"
        )
        flows += live.dialogues(public, "on its way home")
        speak(flows)
        live.lead(public, "napt-1")
        flows += live.dialogues(public, "at home")
        speak(flows)
        live.echoes_at(public)


def speak(flows: list[Dialogue]) -> None:
    for flow in flows:
        flow.exchange()


def handed_over(live: NaptFabric, old: str, new: str) -> None:
    live.eventually(lambda: live.mappings(new)[PRIVATE]["state"] == "translated", "it has it")
    live.eventually(lambda: live.mappings(old)[PRIVATE]["state"] == "elsewhere", "it has let it go")
