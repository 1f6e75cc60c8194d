"""A fabric of namespaces with three NVEs' data planes, for tests that look at packets:

host -- r1 -- r2 -- b
         |
         a -- c        (a and c are neighbours; a, b and c are NVEs)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

from tests.contract.frames import Guest, payload_of, udp_socket
from tests.contract.namespaces import Namespace, join
from vmmobility.drivers.dataplane import Traffic
from vmmobility.drivers.linux.driver import LinuxDataPlane
from vmmobility.drivers.linux.ownership import DEFAULT_GATEWAY_MAC
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.engine.dataplane import Forwarding, VmDataPlane, port_name
from vmmobility.wire.values import Interface, Nve, Prefix, VmKey

GATEWAY = DEFAULT_GATEWAY_MAC
VM = VmKey(0, "vm-1")
TAP = port_name(VM, 0)
MAC = bytes.fromhex("020000000005")
OWN = {4: "10.77.0.5", 6: "fd77::5"}
HOST = {4: "10.0.9.1", 6: "fd00:9::1"}
INSIDE = {4: "10.0.8.1", 6: "fd00:8::1"}
"""The host's other address, in the data centres where a fabric is told what they are."""

DC_OF_FABRIC = (
    *(ip_network(f"10.0.{number}.0/24") for number in (1, 2, 3, 8, 12)),
    *(ip_network(f"fd00:{number}::/64") for number in (1, 2, 3, 8, 12)),
    ip_network("10.77.0.0/24"),
    ip_network("fd77::/64"),
)
LOCAL = VmDataPlane(
    VM,
    (Interface(MAC, (ip_network("10.77.0.5/32"), ip_network("fd77::5/128"))),),
    plugged=True,
    forwarding=Forwarding.LOCAL,
)
ABSENT = replace(LOCAL, plugged=False, forwarding=Forwarding.NONE)


def nve(name: str, number: int, host: int) -> Nve:
    return Nve(name, IPv4Address(f"10.0.{number}.{host}"), IPv6Address(f"fd00:{number}::{host}"))


A, B, C = nve("a", 1, 2), nve("b", 2, 2), nve("c", 3, 2)


@dataclass
class Node:
    """An NVE: its namespace and its driver."""

    space: Namespace
    driver: LinuxDataPlane
    settings: LinuxSettings

    def apply(self, *states: VmDataPlane) -> None:
        assert self.space.await_(self.driver.apply(states)) == []

    def resync(self, *states: VmDataPlane) -> None:
        assert self.space.await_(self.driver.resync({s.vm: s for s in states})) == []

    def traffic(self) -> Traffic:
        return self.space.await_(self.driver.traffic())[VM]

    def relay(self) -> dict[str, Any]:
        return self.space.await_(self.driver._relay.order({"op": "counters"}))

    def relay_pid(self) -> int:
        return int((self.settings.state_dir / "relay.lock").read_text())

    def plug(self, tap: str = TAP, mac: bytes = MAC) -> Guest:
        return Guest(self.space, tap, mac, GATEWAY)


@dataclass
class Fabric:
    host: Namespace
    a: Node
    b: Node
    c: Node
    r1: Namespace
    r2: Namespace


def _node(space: Namespace, locators: Nve, folder: Path, dc_prefixes: tuple[Prefix, ...]) -> Node:
    settings = LinuxSettings(
        locators.ipv4, locators.ipv6, folder / locators.nve_id, dc_prefixes=dc_prefixes
    )
    driver = space.call(LinuxDataPlane, settings)
    space.await_(driver.start())
    return Node(space, driver, settings)


def make_fabric(folder: Path, dc_prefixes: tuple[Prefix, ...] = ()) -> Iterator[Fabric]:
    kind = "d" if dc_prefixes else ""
    spaces = {name: Namespace(kind + name) for name in ("h", "r1", "r2", "a", "b", "c")}
    h, r1, r2, a, b, c = spaces.values()
    try:
        join(r1, "toa", a, "eth0", 1)
        join(r2, "tob", b, "eth0", 2)
        join(a, "toc", c, "eth0", 3)
        join(h, "eth0", r1, "toh", 9)
        join(r1, "tor2", r2, "tor1", 12)
        for space, via in ((h, "9::2"), (a, "1::1"), (b, "2::1"), (c, "3::1"), (r2, "12::1")):
            number, host = via.split("::")
            space.ip("route", "add", "default", "via", f"10.0.{number}.{host}")
            space.ip("-6", "route", "add", "default", "via", f"fd00:{via}")
        for space in (r1, r2):
            space.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        r1.ip("route", "add", "10.0.2.0/24", "via", "10.0.12.2")
        r1.ip("-6", "route", "add", "fd00:2::/64", "via", "fd00:12::2")
        # Home: the covering prefix leads to a.
        r1.ip("route", "add", "10.77.0.0/24", "via", "10.0.1.2")
        r1.ip("-6", "route", "add", "fd77::/64", "via", "fd00:1::2")
        h.ip("addr", "add", f"{INSIDE[4]}/32", "dev", "lo")
        h.ip("addr", "add", f"{INSIDE[6]}/128", "dev", "lo", "nodad")
        r1.ip("route", "add", "10.0.8.0/24", "via", HOST[4])
        r1.ip("-6", "route", "add", "fd00:8::/64", "via", HOST[6])
        made = Fabric(
            h,
            _node(a, A, folder, dc_prefixes),
            _node(b, B, folder, dc_prefixes),
            _node(c, C, folder, dc_prefixes),
            r1,
            r2,
        )
        yield made
        for node in (made.a, made.b, made.c):
            node.space.await_(node.driver.remove_all())
    finally:
        for space in spaces.values():
            space.close()


def send(fabric: Fabric, version: int, payload: bytes) -> None:
    with udp_socket(fabric.host, version, HOST[version]) as sender:
        sender.sendto(payload, (OWN[version], 4000))


def receives(guest: Guest, payload: bytes, deadline_s: float = 3.0) -> bool:
    found = guest.find(lambda f: payload if payload_of(f) == payload else None, deadline_s)
    return found is not None


def reach(fabric: Fabric, guest: Guest, version: int, payload: bytes) -> None:
    send(fabric, version, payload)
    assert receives(guest, payload), f"IPv{version} {payload!r} did not arrive"
