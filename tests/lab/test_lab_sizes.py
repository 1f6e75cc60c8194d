"""Packet sizes: the probe against a kernel whose links change, and the scenario mtu-shrink."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.lab.lab_command import Lab
from tests.lab.test_lab_probe import until
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import teardown, workdir
from vmmobility.lab.correspondents import Pair
from vmmobility.lab.counting import LATE_NS, Window
from vmmobility.lab.faults import Faults, find_link
from vmmobility.lab.inside import python, python_environment, udp_ask
from vmmobility.lab.light_guest import SIZE_PORT
from vmmobility.lab.namespaces import Namespaces
from vmmobility.lab.sizes import SizeProbes, bulk_report, silent

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.timeout(180)]

FABRIC = {
    "mtu": 1500,
    "router": [{"name": "core"}, {"name": "edge"}],
    "correspondent": [{"name": "near"}, {"name": "echo"}],
    "link": [
        {"nodes": ["core", "near"]},
        {"nodes": ["edge", "echo"]},
        {"nodes": ["core", "edge"], "mtu": 1400},
    ],
}
PAIR = Pair("near", "echo")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A fabric with an echo service behind a link of 1400 octets, and the probes beside it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    fabric = fabrics.parse_fabric(FABRIC, "test")
    info = workdir.create("sizes", "test", owned=True)
    spaces = Namespaces(fabric, info.lab_id)
    spaces.up()
    command = python("vmmobility.lab.light_guest", namespace=spaces.name("echo"))
    echo = subprocess.Popen(command, env=python_environment())
    addresses = [str(a.ip) for a in fabric.first_end("echo").addresses]
    for address in addresses:
        udp_ask(spaces.name("near"), address, SIZE_PORT, b"ready?", 20)
    probes = SizeProbes(tmp_path / "sizes")
    near = {"near": spaces.name("near")}
    probes.start([PAIR], near, {"near": fabric.mtu_at("near")}, {"echo": addresses})
    yield fabric, spaces, probes
    probes.stop()
    echo.kill()
    echo.wait()
    assert teardown.tear_down(info) == []


def set_mtu(spaces, mtu):
    for node, interface in (("core", "edge"), ("edge", "core")):
        subprocess.run(["ip", "-n", spaces.name(node), "link", "set", interface, "mtu", str(mtu)],
                       check=True)  # fmt: skip


def passes(probes, version, since_ns):
    """The sizes that were echoed and the MTUs told, of packets sent since then."""
    record = probes.record(PAIR, version)
    fresh = {n: octets for n, (at_ns, octets) in record.sent.items() if at_ns > since_ns}
    echoed = {octets for n, octets in fresh.items() if n in record.echoed}
    return max(echoed, default=0), {record.errors[n] for n in fresh if n in record.errors}


def answered(probes, version, since_ns):
    """Whether the first 20 packets sent since then all have an echo or an error."""
    record = probes.record(PAIR, version)
    fresh = sorted(n for n, (at_ns, _) in record.sent.items() if at_ns > since_ns)[:20]
    return len(fresh) == 20 and all(n in record.echoed or n in record.errors for n in fresh)


@pytest.mark.parametrize("version", [4, 6])
def test_the_probe_follows_a_path_down_and_up(kernel, version):
    fabric, spaces, probes = kernel
    core = str(fabric.first_end("core").address(version))
    for mtu in (1400, 1300, 1450, 1500):
        set_mtu(spaces, mtu)
        since_ns = time.time_ns()

        def settled(mtu=mtu, since_ns=since_ns):
            largest, told = passes(probes, version, since_ns)
            return largest == mtu and (mtu == 1500 or (mtu, core) in told)

        until(settled, f"{mtu} octets pass, and no more")
        settled_ns = time.time_ns()
        until(lambda at=settled_ns: answered(probes, version, at), "20 packets all answered")
    probes.stop()
    record = probes.record(PAIR, version)
    assert {source for _, source in record.errors.values()} == {core}
    bulk = bulk_report(1, PAIR, version, record)
    assert bulk.survived
    assert bulk.octets > 0


def test_the_probe_counts_what_is_dropped_in_silence(kernel):
    fabric, spaces, probes = kernel
    until(lambda: passes(probes, 4, 0)[0] == 1400, "1400 octets pass")
    faults = Faults(spaces)
    link = find_link(fabric, "core--edge", "test")
    faults.drop(link, 1000)
    begun_ns = time.time_ns()
    until(lambda: len([at for at, _ in probes.record(PAIR, 4).sent.values() if at > begun_ns]) > 50,
          "packets into the cut")  # fmt: skip
    ended_ns = time.time_ns()
    faults.heal(link)
    probes.stop()
    record = probes.record(PAIR, 4)
    window = Window(begun_ns, ended_ns)
    lost = silent(record, window, time.time_ns() + LATE_NS)
    fitting = [octets for at, octets in record.sent.values() if window.holds(at) and octets <= 1400]
    # What did not fit was refused before the cut, at the router.
    assert lost == len(fitting) > 10


def test_mtu_shrink_says_what_passes_and_who_told(lab: Lab) -> None:
    report = lab.run("mtu-shrink")
    assert report["summary"]["lost"] == 0
    assert report["summary"]["packet_sizes"]["silent"] == 0
    assert report["summary"]["packet_sizes"]["bulk_survived"] == 6
    rows = {
        (row["move"], row["correspondent"], row["family"], row["phase"]): row
        for row in report["packet_sizes"]
    }
    assert len(rows) == 3 * 3 * 2 * 3
    outer = {"ipv4": 20, "ipv6": 40}
    locator = {"ipv4": "10.0.1.2", "ipv6": "fd00:0:1::2"}
    kinds = {"ipv4": "fragmentation-needed", "ipv6": "packet-too-big"}
    for (move, who, family, phase), row in rows.items():
        assert row["silent"] == 0
        path = {1: 1500, 2: 1400, 3: 1500}[move]
        if phase == "after":
            assert row["largest_octets"] == path - (outer[family] if move < 3 else 0)
        if phase == "after" and move < 3:
            error = row["error"]
            assert (error["kind"], error["mtu"]) == (kinds[family], path - outer[family])
            gateway = ["169.254.1.1"] if (who, family, move) == ("beside", "ipv4", 1) else []
            assert error["from"] in [*gateway, locator[family]]
    output = (lab.out / "output.txt").read_text()
    assert "largest packet, move 2, near to vm1 ipv4: before 1480" in output
    assert json.loads((lab.out / "r.json").read_text())["bulk"][0]["octets"] > 100_000
