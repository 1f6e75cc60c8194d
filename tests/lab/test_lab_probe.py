"""The probe against a kernel: a known loss is counted exactly."""

from __future__ import annotations

import csv
import subprocess
import threading
import time

import pytest

from vmmobility.lab import fabric as fabrics
from vmmobility.lab import teardown, workdir
from vmmobility.lab.correspondents import Correspondents, Pair
from vmmobility.lab.counting import Window, count_tcp, count_udp, write_raw
from vmmobility.lab.fabric_values import PROBE_EVERY_MS
from vmmobility.lab.faults import Faults, find_link
from vmmobility.lab.inside import python, python_environment, udp_ask
from vmmobility.lab.namespaces import Namespaces

pytestmark = [pytest.mark.netns, pytest.mark.lab]

FABRIC = {
    "router": [{"name": "core"}],
    "correspondent": [{"name": "near"}, {"name": "echo"}],
    "link": [{"nodes": ["core", "near"]}, {"nodes": ["core", "echo"]}],
}


def until(condition, what, within_s=20.0):
    """Wait for a condition with a deadline, and show what was last seen."""
    pause = threading.Event()
    deadline = time.monotonic() + within_s
    seen = condition()
    while not seen and time.monotonic() < deadline:
        pause.wait(0.05)
        seen = condition()
    assert seen, f"{what}: last seen {seen!r}"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    fabric = fabrics.parse_fabric(FABRIC, "test")
    info = workdir.create("probe", "test", owned=True)
    spaces = Namespaces(fabric, info.lab_id)
    spaces.up()
    echo = subprocess.Popen(
        python("vmmobility.lab.light_guest", namespace=spaces.name("echo")),
        env=python_environment(),
    )
    yield fabric, spaces, info
    echo.kill()
    echo.wait()
    assert teardown.tear_down(info) == []


def test_probe_counts_a_known_loss_and_raw_files_agree(lab, tmp_path):
    fabric, spaces, info = lab
    addresses = [str(a.ip) for a in fabric.first_end("echo").addresses]
    answer = udp_ask(spaces.name("near"), addresses[0], 8, b"check", 10)
    assert b'"bad_pages": 0' in answer
    pair = Pair("near", "echo")
    probes = Correspondents(info.folder / "probes", PROBE_EVERY_MS)
    probes.start([pair], {"near": spaces.name("near")}, {"echo": addresses})
    Faults(spaces).drop_next(fabric.first_end("near"), 7, 37)

    def all_dropped():
        done = subprocess.run(
            ["ip", "netns", "exec", spaces.name("near"), "nft", "list", "ruleset"],
            capture_output=True,
            text=True,
            check=True,
        )
        return "packets 37 " in done.stdout

    until(all_dropped, "37 echoes dropped")
    Faults(spaces).heal(find_link(fabric, "core--near", "test"))
    before = len(probes.udp(pair, 4).received)
    until(lambda: len(probes.udp(pair, 4).received) > before + 100, "echoes after the loss")
    probes.stop()
    window = Window(0, 2**63)
    counts = [count_udp(probes.udp(pair, version), window) for version in (4, 6)]
    assert sum(count.lost for count in counts) == 37
    assert all(count.duplicated == 0 and count.sent > 100 for count in counts)
    assert count_tcp(probes.tcp(pair, 4), window).survived
    assert count_tcp(probes.tcp(pair, 6), window).survived
    rows = []
    for version in (4, 6):
        write_raw(tmp_path / "raw.csv", probes.udp(pair, version), window)
        with (tmp_path / "raw.csv").open() as file:
            rows += list(csv.DictReader(file))
    assert sum(row["received_ns"] == "" for row in rows) == 37
    assert len(rows) == sum(count.sent for count in counts)
    (tmp_path / "raw.csv").unlink()


def test_cut_link_loses_all_until_healed_and_routes_stay(lab):
    fabric, spaces, info = lab
    addresses = [str(a.ip) for a in fabric.first_end("echo").addresses]
    udp_ask(spaces.name("near"), addresses[0], 8, b"status", 10)
    pair = Pair("near", "echo")
    probes = Correspondents(info.folder / "probes", PROBE_EVERY_MS)
    probes.start([pair], {"near": spaces.name("near")}, {"echo": addresses})
    faults, link = Faults(spaces), find_link(fabric, "echo--core", "test")
    faults.drop(link, 1000)
    sent = len(probes.udp(pair, 6).sent)
    until(lambda: len(probes.udp(pair, 6).sent) > sent + 100, "probes into the cut")
    faults.heal(link)
    faults.heal(link)
    heard = len(probes.udp(pair, 6).received)
    until(lambda: len(probes.udp(pair, 6).received) > heard + 50, "echoes after healing")
    probes.stop()
    for version in (4, 6):
        count = count_udp(probes.udp(pair, version), Window(0, 2**63))
        assert count.lost > 90
        assert count.longest_gap_ms > 450
        tcp = count_tcp(probes.tcp(pair, version), Window(0, 2**63))
        assert tcp.survived
        assert tcp.longest_stall_ms > 400
