"""Tunnelled packets captured, read back and judged; who is outside in a fabric."""

from __future__ import annotations

import socket
import struct
from dataclasses import asdict
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.contract.frames import ipv4, ipv6, udp
from vmmobility.lab import fabric as fabrics
from vmmobility.lab.report_fabric import FabricReport
from vmmobility.lab.step_types import Assertion
from vmmobility.lab.tunnel_capture import Capture, Inner, inner_ends, read
from vmmobility.lab.tunnelled import external_not_tunnelled, tunnel_counts

UDP4 = udp("10.0.9.1", "10.77.0.5", b"x")
UDP6 = udp("fd00:9::1", "fd77::5", b"x")
ENDS4, ENDS6 = ("10.0.9.1", "10.77.0.5"), ("fd00:9::1", "fd77::5")


def outer4(protocol: int, body: bytes, offset: int = 0) -> bytes:
    packet = bytearray(ipv4("10.0.1.2", "10.0.2.2", protocol, body))
    packet[6:8] = struct.pack("!H", offset)
    return bytes(packet)


def outer6(protocol: int, body: bytes) -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, "fd00:1::2") * 2
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + ends + body


@pytest.mark.parametrize(
    ("packet", "ends"),
    [
        (outer4(4, UDP4), ENDS4),
        (outer4(41, UDP6), ENDS6),
        (outer6(41, UDP6), ENDS6),
        (outer6(4, UDP4), ENDS4),
        (outer4(4, UDP4, 0x2000), ENDS4),  # a first fragment
        (outer4(4, UDP4, 0x00B9), ("-", "-")),
        (outer6(44, b"\x29\0" + struct.pack("!HI", 1, 7) + UDP6), ENDS6),
        (outer6(44, b"\x29\0" + struct.pack("!HI", 185 << 3, 7) + UDP6), ("-", "-")),
        (outer6(44, b"\x11\0" + struct.pack("!HI", 1, 7) + UDP6), None),
        (outer4(4, UDP4[:15]), ("-", "-")),
        (outer4(4, b""), ("-", "-")),
        (outer4(4, b"\x55" * 60), ("-", "-")),
        (UDP4, None),
        (UDP6, None),
        (b"", None),
        (b"\x45" + bytes(5), None),
        (ipv6("fd00::1", "fd00::2", 58, b"\x80\0\0\0\0\0\0\0"), None),
    ],
)
def test_whom_a_tunnelled_packet_goes_between(packet: bytes, ends: object) -> None:
    assert inner_ends(packet) == ends


def test_a_capture_is_read_back_without_its_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "tunnelled.txt"
    assert read(path) == Capture()
    path.write_text("ready\n17,out,10.0.9.1,10.77.0.5\nlost,3\n18,in,-,-\nlost,2\n19,in,10.")
    found = read(path)
    assert (found.ready, found.lost) == (True, 5)
    assert found.packets == [Inner(17, True, *ENDS4), Inner(18, False, "-", "-")]


def test_the_internet_is_outside_of_the_data_centres() -> None:
    fabric = fabrics.load_fabric(fabrics.find("two-dc-light"))
    found = set(fabric.dc_prefixes)
    for node in fabric.nodes:
        inside = [
            any(a.ip in p for p in found if p.version == a.version)
            for a in fabric.first_end(node.name).addresses
        ]
        assert inside == [node.name not in ("outside", "internet")] * 2, node.name
    for link in fabric.links:
        assert set(link.prefixes) <= found or "internet" in link.name
        assert not set(link.prefixes) & found or "internet" not in link.name
    assert {p for node in fabric.nodes for p in node.home_prefixes} <= found


@pytest.mark.parametrize("name", ["three-racks", "fat-tree-4", "one-segment"])
def test_where_nobody_is_outside_nothing_is_told(name: str) -> None:
    assert fabrics.load_fabric(fabrics.find(name)).dc_prefixes == ()


DC = (ip_network("10.77.0.0/24"), ip_network("10.0.0.0/24"))
INSIDE = Inner(5, True, "10.0.0.1", "10.77.0.5")


def judged(captures: dict[str, Capture], prefixes: Any = DC) -> tuple[str, FabricReport]:
    lab = SimpleNamespace(tunnelled=lambda: captures, fabric=SimpleNamespace(dc_prefixes=prefixes))
    run: Any = SimpleNamespace(lab=lab, number=1, begun_ns=1, ended_ns=100)
    seen = external_not_tunnelled(run, Assertion("external-not-tunnelled", 0))
    return seen, FabricReport(tunnelled=tuple(tunnel_counts(run)))


def test_tunnels_between_hosts_inside_are_as_it_should_be() -> None:
    seen, report = judged({"a": Capture([INSIDE] * 3), "b": Capture([INSIDE])})
    assert seen == ""
    assert report.summary()["tunnelled_inside"] == 4
    assert "4 between hosts inside" in report.lines()[0]


@pytest.mark.parametrize(
    ("capture", "words"),
    [
        (Capture(), "no tunnelled packet was captured at all"),
        (Capture([Inner(200, True, *ENDS4)]), "no tunnelled packet was captured at all"),
        (Capture([INSIDE, Inner(6, True, "192.0.2.1", "10.77.0.5")]), "192.0.2.1 to 10.77.0.5 (1)"),
        (Capture([INSIDE, Inner(6, False, "10.77.0.5", "192.0.2.1")]), "10.77.0.5 to 192.0.2.1"),
        (Capture([INSIDE, Inner(6, True, "2001:db8::1", "fd77::5")]), "2001:db8::1"),
        (Capture([INSIDE, Inner(6, True, "-", "-")]), "could not see 1"),
        (Capture([INSIDE], lost=2), "could not see 2"),
    ],
)
def test_what_is_otherwise_is_said(capture: Capture, words: str) -> None:
    seen, report = judged({"a": capture})
    assert words in seen
    assert len(report.as_json()["tunnelled"]) == 1
    assert asdict(report.tunnelled[0])["missed"] == capture.lost


def test_a_fabric_without_an_outside_cannot_show_it() -> None:
    assert "nobody is outside" in judged({}, ())[0]
