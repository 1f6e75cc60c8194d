r"""An NVE that stands apart from two servers, for tests that look at packets:

host -- n (the NVE) -- s1
                   \-- s2       access links, whose addresses are of one IP version
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from tests.contract.frames import Guest
from tests.contract.namespaces import Namespace, join
from vmmobility.drivers.linux.driver import LinuxDataPlane
from vmmobility.drivers.linux.ownership import DEFAULT_GATEWAY_MAC
from vmmobility.drivers.linux.server_circuits import LEAST_MTU6, ServerCircuits
from vmmobility.drivers.linux.settings import LinuxSettings, ServerEnds
from vmmobility.engine.dataplane import Forwarding, VmDataPlane, port_name
from vmmobility.wire.values import Address, Interface, VmKey

VM, OTHER = VmKey(0, "vm-1"), VmKey(0, "vm-2")
HOST = {4: "10.0.1.2", 6: "fd00:1::2"}
LINKS = {"s1": 41, "s2": 42}


def own(vm: VmKey, version: int) -> str:
    number = vm.vm_id[-1]
    return f"10.77.0.{number}" if version == 4 else f"fd77::{number}"


def mac(vm: VmKey) -> bytes:
    return bytes.fromhex(f"02000000000{vm.vm_id[-1]}")


def state(vm: VmKey = VM, server: str = "s1", **changes: Any) -> VmDataPlane:
    """A VM of this NVE at a server."""
    prefixes = (ip_network(f"{own(vm, 4)}/32"), ip_network(f"{own(vm, 6)}/128"))
    made = VmDataPlane(vm, (Interface(mac(vm), prefixes),), True, Forwarding.LOCAL, server=server)
    return replace(made, **changes)


def ends(server: str, version: int) -> ServerEnds:
    """NVE .1, server .2 on each access link."""
    number = LINKS[server]
    first = f"10.0.{number}." if version == 4 else f"fd00:{number}::"
    return ServerEnds(ip_address(f"{first}2"), ip_address(f"{first}1"))


@dataclass
class Apart:
    """version: of the access links' addresses."""

    host: Namespace
    space: Namespace
    servers: dict[str, Namespace]
    circuits: dict[str, ServerCircuits]
    driver: LinuxDataPlane
    settings: LinuxSettings
    version: int

    def apply(self, *states: VmDataPlane) -> None:
        assert self.space.await_(self.driver.apply(states)) == []

    def resync(self, *states: VmDataPlane) -> None:
        assert self.space.await_(self.driver.resync({s.vm: s for s in states})) == []

    def audit(self) -> list[str]:
        return [str(drift) for drift in self.space.await_(self.driver.audit())]

    def number(self, vm: VmKey = VM) -> int:
        return self.driver.circuit(port_name(vm, 0))

    def attach(self, server: str, vm: VmKey = VM) -> None:
        """As the agent does it before a guest is brought up."""
        ports = {port_name(vm, 0): self.number(vm)}
        self.servers[server].call(self.circuits[server].ensure, ports)

    def plug(self, server: str, vm: VmKey = VM) -> Guest:
        """A guest at a server."""
        self.attach(server, vm)
        return Guest(self.servers[server], port_name(vm, 0), mac(vm), DEFAULT_GATEWAY_MAC)

    def address(self, server: str) -> Address:
        return self.settings.servers[server].server


def make_apart(folder: Path, version: int) -> Iterator[Apart]:
    spaces = {name: Namespace(f"a{version}{name}") for name in ("h", "n", "s1", "s2")}
    host, space = spaces["h"], spaces["n"]
    servers = {name: spaces[name] for name in LINKS}
    try:
        join(space, "eth0", host, "eth0", 1)
        space.ip("route", "add", "default", "via", "10.0.1.2")
        space.ip("-6", "route", "add", "default", "via", "fd00:1::2")
        host.ip("route", "add", "default", "via", "10.0.1.1")
        host.ip("-6", "route", "add", "default", "via", "fd00:1::1")
        for name, number in LINKS.items():
            mtu = 1500 if version == 4 else LEAST_MTU6
            join(space, f"to{name}", spaces[name], "uplink", number, mtu)
            spaces[name].ip("route", "add", "default", "via", f"10.0.{number}.1")
            spaces[name].ip("-6", "route", "add", "default", "via", f"fd00:{number}::1")
        settings = LinuxSettings(
            IPv4Address("10.0.1.1"),
            IPv6Address("fd00:1::1"),
            folder / f"v{version}",
            tunnel="relay",
            servers={name: ends(name, version) for name in LINKS},
        )
        driver = space.call(LinuxDataPlane, settings)
        space.await_(driver.start())
        circuits = {}
        for name, at in servers.items():
            two = ends(name, version)
            circuits[name] = at.call(ServerCircuits, two.server, two.own)
            at.await_(circuits[name].start())
        yield Apart(host, space, servers, circuits, driver, settings, version)
        for name, at in servers.items():
            at.await_(circuits[name].remove_all())
        space.await_(driver.remove_all())
    finally:
        for one in spaces.values():
            one.close()
