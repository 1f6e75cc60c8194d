"""NVEs apart from their servers, all real but for light VMs: every daemon dies once."""

from __future__ import annotations

import json
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon.live_fabric import VM, LiveFabric, left_bare
from vmmobility.lab.fabric import built_in
from vmmobility.lab.inside import python, python_environment
from vmmobility.wire.values import VmKey

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def live() -> Iterator[LiveFabric]:
    tables = tomllib.loads(built_in()["nve-apart-light"].read_text())
    with left_bare(lambda: LiveFabric(tables=tables)) as made:
        yield made


def server(live: LiveFabric, nve: str) -> str | None:
    with live.nve(nve) as client:
        rows = client.vms()
    return next((row["server"] for row in rows if row["vm"] == VM), None)


def relocate(live: LiveFabric, to: str) -> None:
    with live.nve("nve-a") as client:
        assert client.relocate_vm(VmKey(0, VM), to)["server"] == to
    live.echoes()


def test_between_two_servers_of_one_nve(live: LiveFabric) -> None:
    live.echoes()
    first = server(live, "nve-a")
    other = "server-2" if first == "server-1" else "server-1"
    relocate(live, other)
    live.eventually(lambda: server(live, "nve-a") == other, "it is there")
    relocate(live, str(first))


def test_from_one_such_nve_to_another_and_to_a_host_s_own(live: LiveFabric) -> None:
    for nve, at in (("nve-b", "server-3"), ("nve-c", None)):
        live.move(nve)
        live.echoes()
        assert server(live, nve) == at
    live.move("nve-a")
    live.echoes()
    assert server(live, "nve-a") in ("server-1", "server-2")


def manager_rows(live: LiveFabric) -> dict[str, dict[str, Any]]:
    with live.manager() as client:
        rows = next(row for row in client.nves() if row["nve"] == "nve-a")["servers"]
    return {row["server"]: row for row in rows}


def binding(live: LiveFabric) -> dict[str, Any]:
    with live.manager() as client:
        return client.binding(VmKey(0, VM))


def test_the_manager_knows_servers_and_moves_to_one_by_its_one_verb(live: LiveFabric) -> None:
    live.eventually(lambda: bool(manager_rows(live)), "nve-a has told of its servers")
    rows = manager_rows(live)
    assert set(rows) == {"server-1", "server-2"}
    assert {row["liveness"] for row in rows.values()} == {"alive"}
    assert all(row["threads"] and row["capacity"]["memory_mib"] for row in rows.values())
    refused = live.vmmob("move", VM, "--server", "server-3")
    assert refused.returncode == 1
    assert "nve-a has no server server-3: its servers are server-1, server-2" in refused.stderr
    first = binding(live)
    other = "server-2" if first["server"] == "server-1" else "server-1"
    moved = live.vmmob("move", VM, "--server", other, "--wait", "--json")
    assert moved.returncode == 0, moved.stderr
    live.echoes()
    assert (binding(live)["server"], binding(live)["epoch"]) == (other, first["epoch"])
    assert server(live, "nve-a") == other
    row = json.loads(moved.stdout)
    assert (row["from_server"], row["to_server"], row["ok"]) == (first["server"], other, True)


def test_a_dead_server_is_told_and_its_nve_lives(live: LiveFabric) -> None:
    at = str(binding(live)["server"])
    live.kill(at, signal.SIGKILL)
    live.eventually(lambda: binding(live)["state"] == "server-dead", "its VM is marked", 20.0)
    live.echoes()  # fail static
    with live.manager() as client:
        alarms = [row for row in client.alarms() if row["alarm"] == "server.silent"]
        nves = {row["nve"]: row["liveness"] for row in client.nves()}
    assert [alarm["nve"] for alarm in alarms] == ["nve-a"]
    assert at in alarms[0]["what"]
    assert nves["nve-a"] == "alive"
    live.start_ended()
    live.eventually(lambda: binding(live)["state"] == "serving", "it answers again", 20.0)
    with live.manager() as client:
        assert not [row for row in client.alarms() if row["alarm"] == "server.silent"]


def test_no_server_is_flushed_under_its_agent_or_its_guests(live: LiveFabric) -> None:
    if live.where() != "nve-a":
        live.move("nve-a")
    agent = str(server(live, "nve-a"))

    def flushed() -> str:
        file = str(live.daemons.home(agent) / "config.toml")
        words = python("vmmobility", "server", "flush", "--config", file)
        space = ["ip", "netns", "exec", live.daemons._spaces.name(agent)]
        done = subprocess.run([*space, *words], check=False, capture_output=True, text=True,
                              env=python_environment())  # fmt: skip
        assert done.returncode == 1
        return done.stderr

    assert "another process holds this folder" in flushed()
    live.kill(agent, signal.SIGKILL)
    refused = flushed()
    assert "guests live on this server: " in refused
    assert "remedy: move them away" in refused
    live.echoes()
    live.start_ended()
    live.eventually(lambda: server(live, "nve-a") == agent, "it is found at its server")


@pytest.mark.parametrize("victim", ["nve-a", "agent", "both"])
def test_killed_daemons_find_everything_again(live: LiveFabric, victim: str) -> None:
    agent = str(server(live, "nve-a"))
    for node in {"nve-a": ["nve-a"], "agent": [agent], "both": ["nve-a", agent]}[victim]:
        live.kill(node, signal.SIGKILL)
    live.echoes()  # fail static
    live.start_ended()
    live.eventually(lambda: server(live, "nve-a") == agent, "it is found at its server")
    live.echoes()
    other = "server-2" if agent == "server-1" else "server-1"

    def moved() -> bool:
        relocate(live, other)
        return True

    live.eventually(moved, "it can be moved again")
