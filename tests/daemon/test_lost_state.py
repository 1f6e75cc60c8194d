"""An NVE whose journal is lost while guests live does not start: it would take their taps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.contract.namespaces import Namespace, wait_for
from tests.daemon.live_fabric import live_fabric
from tests.daemon.one_host import Host
from vmmobility.drivers.linux.tap import TUN_DEVICE
from vmmobility.lab.inside import python_environment

pytestmark = [pytest.mark.netns]

TAP = "vmtdeadbeef.0"
HOLDER = f"""
import sys, time
from vmmobility.drivers.linux.tap import open_tap
open_tap({TAP!r})
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def holder(space: Namespace) -> Iterator[int]:
    """A process that holds the tap open, as a guest's does."""
    process = subprocess.Popen(
        ["ip", "netns", "exec", space.name, sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=python_environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def kernel(space: Namespace) -> tuple[str, ...]:
    ours = space.ip("route", "show", "table", "all", "proto", "77")
    links = space.run("ls", "/sys/class/net")
    return links, ours, space.ip("rule"), space.run("nft", "list", "ruleset")


@pytest.mark.parametrize("up", ["up", "down"])
def test_a_tap_in_use_that_no_record_knows_keeps_it_from_starting(host: Host, up: str):
    host.space.ip("tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr")
    host.space.ip("link", "set", TAP, up)
    config = host.configure("nve-a")
    with holder(host.space) as pid:
        before = kernel(host.space)
        # Again and again, as a service manager would try.
        for _ in range(2):
            error, remedy = host.run("nve-a", config).refused()
            assert f"{TAP} (process {pid})" in error
            assert "journal is empty" in error
            assert "restore state_dir" in remedy
            assert f"vmmob nve flush --config {config}" in remedy
        assert kernel(host.space) == before
    # Its guest has ended: what is left over is cleaned.
    wait_for(lambda: "NO-CARRIER" in host.space.ip("link", "show", TAP) or up == "down", "the end")
    assert host.end(host.start("nve-a", config)).code == 0
    assert TAP not in host.space.ip("link")
    host.flush()


def test_the_remedy_works(host: Host):
    host.space.ip("tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr")
    config = host.configure("nve-a")
    with holder(host.space):
        assert host.run("nve-a", config).code == 1
        flushed = host.vmmob("nve", "flush", "--config", config)
        assert (flushed.code, flushed.err) == (0, "")
        assert TAP not in host.space.ip("link")
        assert host.end(host.start("nve-a", config)).code == 0
    host.flush()


def test_an_unused_tap_and_one_of_another_namespace_do_not_matter(host: Host):
    host.space.ip("tuntap", "add", "dev", TAP, "mode", "tap")
    other = Namespace("other")
    try:
        other.ip("tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr")
        with holder(other):
            assert host.end(host.start("nve-a", host.configure("nve-a"))).code == 0
    finally:
        other.close()
    assert TAP not in host.space.ip("link")
    host.flush()


@pytest.mark.lab
def test_a_guest_that_is_served_lives_on_until_its_state_is_restored():
    assert os.path.exists(TUN_DEVICE)
    with live_fabric() as fabric:
        serving = fabric.where()
        fabric.kill(serving, signal.SIGKILL)
        journal = fabric.daemons.home(serving) / "state" / "journal"
        shutil.move(journal, journal.with_name("backup"))
        fabric.daemons.start(serving)
        assert fabric.daemons.processes[serving].wait(15) == 1
        said = (fabric.daemons.home(serving) / "stderr.txt").read_text()
        assert "guests that it should know live here: vmt" in said
        fabric.echoes()
        shutil.move(journal.with_name("backup"), journal)
        fabric.start(serving)
        fabric.eventually(lambda: fabric.where() == serving, "it is served on")
        fabric.echoes()
        fabric.move("nve-b")
        fabric.echoes()
