"""The search for what a lab left behind finds each kind of thing that it can leave."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from vmmobility.lab import namespaces, teardown, workdir
from vmmobility.lab.inside import NETNS

pytestmark = [pytest.mark.netns, pytest.mark.lab]


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def info(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made = workdir.create("left", "test", owned=True)
    name = f"{made.lab_id}-node"
    ip("netns", "add", name)
    yield replace(made, namespaces={name: (NETNS / name).stat().st_ino})
    namespaces.delete([name])


def named(path):
    """A process that is in the host's namespace, and bears a path in its command."""
    waits = "import signal; signal.pause()"
    return subprocess.Popen([sys.executable, "-c", waits, str(path)])


def until_in_namespace(process, inode):
    while os.stat(f"/proc/{process.pid}/ns/net").st_ino != inode:
        assert process.poll() is None


def test_a_namespace_and_the_folder_are_found(info):
    left = teardown.leftovers(info)
    assert f"namespace {info.lab_id}-node" in left
    assert f"folder {info.folder}" in left
    assert teardown.tear_down(info) == []


def test_a_process_in_a_namespace_is_found_even_when_the_namespace_has_lost_its_name(info):
    (name, inode) = next(iter(info.namespaces.items()))
    process = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "3600"])
    try:
        until_in_namespace(process, inode)
        namespaces.delete([name])
        assert any(line.startswith(f"process {process.pid}:") for line in teardown.leftovers(info))
    finally:
        process.kill()
        process.wait()
    assert not any(line.startswith("process") for line in teardown.leftovers(info))
    assert teardown.tear_down(info) == []


def test_a_qemu_outside_every_namespace_is_found_by_its_folder_and_ended(info):
    console = info.folder / "nodes" / "console.log"
    process = named(console)
    try:
        assert f"process {process.pid}" in str(teardown.leftovers(info))
        assert teardown.tear_down(info) == []
        assert process.wait(5) != 0
    finally:
        process.kill()
        process.wait()


def test_a_stranger_who_reads_a_log_is_left_alone(info):
    log = info.folder / "nodes" / "log.json"
    reader = subprocess.Popen(["tail", "--follow", "--retry", "--pid", str(os.getpid()), str(log)],
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        assert teardown.tear_down(info) == []
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()


def test_a_tap_in_the_host_is_found_unless_it_was_there_before(info):
    tap = "vmt" + info.lab_id[3:]
    ip("tuntap", "add", "dev", tap, "mode", "tap")
    try:
        assert teardown.tear_down(info) == [f"interface {tap} in the host"]
        assert teardown.host_leftovers([tap]) == []
    finally:
        ip("link", "del", tap)
    assert teardown.leftovers(info) == []


def test_a_process_in_a_namespace_that_only_has_the_same_inode_is_nobodys(info):
    (name, inode) = next(iter(info.namespaces.items()))
    process = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "3600"])
    try:
        until_in_namespace(process, inode)
        stranger = replace(info, lab_id="vmlffff", namespaces={"vmlffff-node": inode})
        teardown.tear_down(stranger)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert teardown.tear_down(info) == []
