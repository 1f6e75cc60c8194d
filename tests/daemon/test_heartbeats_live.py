"""Heartbeats between live daemons: an NVE that is killed is marked and alarmed, and cleared."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.contract.namespaces import wait_for
from tests.daemon.one_host import Host
from vmmobility.lab.api_client import request

pytestmark = [pytest.mark.netns]


@pytest.fixture
def host() -> Any:
    made = Host()
    try:
        yield made
    finally:
        made.end_all()
        made.flush()
        made.close()


def told(host: Host, path: str) -> Any:
    return request(host.socket("manager"), "GET", path)


def test_a_killed_nve_is_dead_within_three_heartbeats_and_back_when_it_beats(host: Host):
    host.start("manager", host.configure("manager"))
    config = host.configure("nve-a")
    nve = host.start("nve-a", config)

    def row() -> dict[str, Any]:
        (found,) = told(host, "/v1/nves")
        return dict(found)

    wait_for(lambda: row()["liveness"] == "alive", "nve-a is alive", 15.0)
    wait_for(lambda: row()["capacity"]["memory_mib"] > 0, "its memory is told", 15.0)
    assert told(host, "/v1/alarms") == []
    nve.send_signal(signal.SIGKILL)
    wait_for(lambda: row()["liveness"] == "dead", "nve-a is dead", 15.0)
    (alarm,) = told(host, "/v1/alarms")
    assert (alarm["alarm"], alarm["nve"]) == ("nve.silent", "nve-a")
    (event,) = [e for e in host.events("manager") if e["event"] == "nve.silent"]
    assert event["silent_s"] <= 4.0  # three heartbeats and 1 s, by the manager's own clock
    again = host.start("nve-a", config)
    wait_for(lambda: row()["liveness"] == "alive", "nve-a is back", 15.0)
    assert told(host, "/v1/alarms") == []
    names = [e["event"] for e in host.events("manager")]
    assert "nve.back" in names
    assert "nve.restarted" in names
    host.end(again)
