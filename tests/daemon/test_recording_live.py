"""Real daemons that record themselves: what they wrote replays to the same, elsewhere."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.namespaces import Namespace, wait_for
from tests.daemon.one_host import Host

pytestmark = pytest.mark.netns

LIGHT_VM = """\
vm_id = "vm1"
kind = "netns"
machine = {{ namespace = "{namespace}" }}
[[interface]]
mac = "02:00:00:00:00:01"
addresses = ["10.1.0.5"]
"""


@pytest.fixture
def host() -> Iterator[Host]:
    made, guest = Host(), Namespace("guest")
    guest.ip("tuntap", "add", "eth0", "mode", "tap")
    (made.folder / "vm1.toml").write_text(LIGHT_VM.format(namespace=guest.name))
    try:
        yield made
        made.flush()
    finally:
        made.close()
        guest.close()


def recordings(host: Host, node: str) -> list[Path]:
    return sorted((host.folder / "recordings").glob(f"{node}-*.jsonl"))


def registered(host: Host) -> None:
    """The NVE has a VM, the manager its binding."""
    file, place = host.folder / "vm1.toml", ("--socket", host.socket("nve-a"))
    started = host.vmmob("nve", "start", file, *place)
    assert started.code == 0, started.err
    shown = host.vmmob("vm", "list", "--json", "--socket", host.socket("manager"))
    assert [row["vm"] for row in json.loads(shown.out)] == ["vm1"]


def ended(host: Host) -> None:
    """The guest would outlive its daemon."""
    stopped = host.vmmob("nve", "stop", "vm1", "--socket", host.socket("nve-a"))
    assert stopped.code == 0, stopped.err


def test_both_daemons_recordings_replay_to_the_same(host: Host):
    (host.folder / "recordings").mkdir()
    place = {"record": str(host.folder / "recordings")}
    manager = host.start("manager", host.configure("manager", **place))
    nve = host.start("nve-a", host.configure("nve-a", **place))
    registered(host)
    nve.send_signal(signal.SIGHUP)
    wait_for(lambda: any(e["event"] == "keys.reloaded" for e in host.events("nve-a")), "keys", 10)
    refused = host.vmmob("move", "vm1", "nowhere", "--socket", host.socket("manager"))
    assert refused.code == 1
    ended(host)
    assert (host.end(nve).code, host.end(manager).code) == (0, 0)
    for node, words in (
        ("manager", ("attach vm1", "deregister vm1 accepted", "and fails: MoveRefused: ")),
        ("nve-a", ("orders vm1 start", "holds vm1: plugged, local", "takes keys 1 of manager")),
    ):
        (path,) = recordings(host, node)
        assert path.stat().st_mode & 0o777 == 0o600
        replayed = host.vmmob("replay", path)
        assert (replayed.code, replayed.err) == (0, ""), replayed.err + replayed.out[-1500:]
        assert replayed.out.endswith("same (the daemon stopped)\n")
        for word in words:
            assert word in replayed.out, (word, replayed.out)
        assert [e["file"] for e in host.events(node) if e["event"] == "recording.started"] == [
            str(path)
        ]
        secret = next(
            line for line in (host.folder / "keys" / "manager--nve-a.toml").read_text().splitlines()
            if line.startswith("secret")
        ).split('"')[1]  # fmt: skip
        assert secret not in path.read_text()


def test_a_killed_daemons_recording_replays_and_the_next_start_gets_its_own(host: Host):
    (host.folder / "recordings").mkdir()
    config = host.configure("manager", record=str(host.folder / "recordings"))
    manager = host.start("manager", config)
    nve = host.start("nve-a", host.configure("nve-a"))
    registered(host)
    manager.kill()
    manager.wait()
    (first,) = recordings(host, "manager")
    replayed = host.vmmob("replay", first)
    assert replayed.code == 0, replayed.out
    assert "attach vm1 accepted" in replayed.out
    assert "the daemon was killed" in replayed.out.splitlines()[-1]
    again = host.start("manager", config)
    assert len(recordings(host, "manager")) == 2
    ended(host)
    assert (host.end(again).code, host.end(nve).code) == (0, 0)


def test_a_file_that_is_there_is_refused_before_anything_is_done(host: Host):
    config = host.configure("manager")
    (host.folder / "there").write_text("mine")
    ended = host.vmmob("manager", "run", "--config", config, "--record", host.folder / "there")
    error, remedy = ended.refused()
    assert "exists already" in error
    assert "folder" in remedy
    assert (host.folder / "there").read_text() == "mine"
    config = host.configure("nve-a", record=str(host.folder / "none" / "x"))
    error, _ = host.run("nve-a", config).refused()
    assert "the recording cannot be made: No such file or directory" in error


def test_a_disk_that_fills_up_ends_the_recording_alone(host: Host):
    """A real full disk: a small tmpfs of the namespace's own, below the daemon."""
    small = host.folder / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=4k none {small} && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", script, "sh")
    manager = host.start("manager", host.configure("manager", record=str(small)), before=before)
    nve = host.start("nve-a", host.configure("nve-a"))
    registered(host)

    ended(host)
    (note,) = [e for e in host.events("manager") if e["event"] == "recording.stopped"]
    assert note["reason"] == "it cannot be written: No space left on device"
    assert (host.end(nve).code, host.end(manager).code) == (0, 0)
