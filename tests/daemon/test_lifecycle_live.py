"""A VM's life by real daemons and commands: created, confirmed, running in the kernel, deleted."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.namespaces import Namespace, wait_for
from tests.daemon.one_host import Host
from vmmobility.lab.api_client import request

pytestmark = [pytest.mark.netns]

FILE = """
vm_id = "web1"
kind = "netns"
machine = {{ namespace = "{namespace}" }}
[resources]
vcpus = 1
memory_mib = {memory_mib}
[[interface]]
mac = "52:54:00:00:00:09"
addresses = ["10.1.0.9/32", "fd01:1::9/128"]
"""


@pytest.fixture
def host() -> Any:
    made = Host()
    try:
        yield made
    finally:
        made.end_all()
        made.flush()
        made.close()


@pytest.fixture
def inside() -> Iterator[Namespace]:
    """The light VM itself."""
    made = Namespace("vm")
    yield made
    made.close()


def told(host: Host, path: str) -> Any:
    return request(host.socket("manager"), "GET", path)


def vmmob(host: Host, *words: str) -> Any:
    ran = host.vmmob(*words, "--json", "--socket", str(host.socket("manager")))
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def a_file(host: Host, inside: Namespace, memory_mib: int) -> str:
    path: Path = host.folder / f"web1-{memory_mib}.toml"
    path.write_text(FILE.format(memory_mib=memory_mib, namespace=inside.name))
    return str(path)


def test_created_confirmed_running_marked_when_its_nve_is_killed_and_deleted(
    host: Host, inside: Namespace
):
    manager = host.start("manager", host.configure("manager"))
    config = host.configure("nve-a")
    nve = host.start("nve-a", config)
    wait_for(
        lambda: (told(host, "/v1/nves")[0]["capacity"] or {}).get("memory_mib"), "it tells", 15
    )
    huge = host.vmmob(
        "vm", "create", a_file(host, inside, 1 << 24), "--socket", str(host.socket("manager"))
    )
    assert "MiB of memory wanted, most free" in huge.refused()[0]
    offered = vmmob(host, "vm", "create", a_file(host, inside, 64), "--key", "k")
    assert (offered["state"], offered["offer"]["nve"]) == ("offered", "nve-a")
    manager.kill()
    manager.wait()
    manager = host.start("manager", host.configure("manager"))
    assert vmmob(host, "vm", "create", a_file(host, inside, 64), "--key", "k")["state"] == "offered"
    wait_for(lambda: told(host, "/v1/nves")[0]["liveness"] == "alive", "nve-a is heard", 15)
    wait_for(lambda: told(host, "/v1/nves")[0]["capacity"]["memory_mib"], "it tells again", 15)
    assert vmmob(host, "vm", "confirm", "web1", "--wait")["state"] == "running"
    assert "10.1.0.9 dev vmt" in host.space.ip("route", "show", "table", "all")
    nve.send_signal(signal.SIGKILL)
    wait_for(lambda: told(host, "/v1/vms/web1/life")["state"] == "failed", "it has failed", 15)
    assert "nve-a is dead" in told(host, "/v1/vms/web1/life")["reason"]
    assert "10.1.0.9 dev vmt" in host.space.ip("route", "show", "table", "all"), "fail static"
    again = host.start("nve-a", config)
    wait_for(lambda: told(host, "/v1/vms/web1/life")["state"] == "running", "it is back", 15)
    vmmob(host, "vm", "delete", "web1", "--force", "--wait")
    assert told(host, "/v1/vms") == []
    host.end(again)
    host.end(manager)
