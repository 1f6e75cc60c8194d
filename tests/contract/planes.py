"""A DataPlane under its contract's tests: the in-memory twin, or the Linux driver in a namespace.

Beside each stand other hands, which change what it holds.  Not here: the tests, packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from tests.contract.namespaces import Namespace, join, wait_for
from vmmobility.drivers.dataplane import DataPlane, Drift, Failure, Traffic
from vmmobility.drivers.fake_dataplane import FakeDataPlane
from vmmobility.drivers.linux import filter, sysctl
from vmmobility.drivers.linux.driver import LinuxDataPlane
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.drivers.linux.ownership import TAP_PREFIX, TUNNEL_DEVICES
from vmmobility.drivers.linux.settings import LinuxSettings, TunnelWish
from vmmobility.engine.dataplane import Forwarding, VmDataPlane, port_name
from vmmobility.wire.values import Interface, Nve, Prefix, VmKey

T = TypeVar("T")

VM, OTHER = VmKey(0, "vm-1"), VmKey(0, "vm-2")
FAR = Nve("far", IPv4Address("10.0.99.2"), IPv6Address("fd00:99::2"))
NEAR = Nve("near", IPv4Address("10.0.1.2"), IPv6Address("fd00:1::2"))


def state(vm: VmKey = VM, number: int = 5, **changes: Any) -> VmDataPlane:
    """A plugged VM with one address a family, delivered to locally."""
    prefixes = (ip_network(f"10.77.0.{number}/32"), ip_network(f"fd77::{number}/128"))
    interface = Interface(bytes.fromhex(f"0200000000{number:02x}"), prefixes)
    made = VmDataPlane(vm, (interface,), plugged=True, forwarding=Forwarding.LOCAL)
    return replace(made, **changes)


TAP = port_name(VM, 0)
BOTH = ("10.77.0.5/32", "fd77::5/128")
ABSENT: dict[str, Any] = {"plugged": False, "forwarding": Forwarding.NONE}
REDIRECT: dict[str, Any] = {"forwarding": Forwarding.REDIRECT, "target": FAR}


class Hands(Protocol):
    """Other hands than the driver's at what it holds."""

    def remove_route(self, prefix: str) -> None: ...
    def misdirect(self, prefix: str) -> None: ...
    def add_route(self, prefix: str) -> None: ...
    def remove_tap(self, name: str) -> None: ...
    def add_tap(self, name: str) -> None: ...
    def has_tap(self, name: str) -> bool: ...
    def writes(self) -> int:
        """How often the driver has written to what it drives."""


DC = tuple(
    ip_network(p)
    for p in ("10.0.0.0/17", "10.77.0.0/24", "10.78.0.0/24", "fd00::/17", "fd77::/64", "fd78::/64")
)
"""The data centres' prefixes, where a plane is told any; not in them: 10.0.200.0/24, 2001:db8::."""


class Plane:
    """A data plane, called from outside its event loop.

    leads(prefix): where a prefix leads, for all senders that no rule sets apart
    way(address, sender): what becomes of a packet: "tap NAME", "tunnel", "fabric", "via LOCATOR"
    """

    def __init__(
        self,
        plane: DataPlane,
        await_: Callable[[Any], Any],
        leads: Callable[[str], str],
        hands: Hands,
        way: Callable[[str, str], str],
        back_end: str = "",
        folder: Path = Path(),
    ) -> None:
        self.plane, self.await_, self.leads, self.hands = plane, await_, leads, hands
        self.way, self.back_end, self.folder = way, back_end, folder

    def tunnelled(self, prefix: str) -> bool:
        """Whether packets to the prefix are led into a tunnel."""
        return any(f"dev {name} " in f"{self.leads(prefix)} " for name in TUNNEL_DEVICES)

    def start(self) -> None:
        self.await_(self.plane.start())

    def apply(self, *desired: VmDataPlane) -> Sequence[Failure]:
        found: Sequence[Failure] = self.await_(self.plane.apply(desired))
        return found

    def resync(self, *desired: VmDataPlane) -> Sequence[Failure]:
        found: Sequence[Failure] = self.await_(self.plane.resync({d.vm: d for d in desired}))
        return found

    def audit(self, vms: Collection[VmKey] | None = None) -> Sequence[Drift]:
        found: Sequence[Drift] = self.await_(self.plane.audit(vms))
        return found

    def traffic(self) -> Mapping[VmKey, Traffic]:
        found: Mapping[VmKey, Traffic] = self.await_(self.plane.traffic())
        return found

    def close(self) -> None:
        self.await_(self.plane.close())

    def remove_all(self) -> None:
        self.await_(self.plane.remove_all())


class FakeHands:
    def __init__(self, fake: FakeDataPlane) -> None:
        self._fake = fake

    def remove_route(self, prefix: str) -> None:
        del self._fake.routes[ip_network(prefix)]

    def misdirect(self, prefix: str) -> None:
        self._fake.routes[ip_network(prefix)] = "eth0"

    def add_route(self, prefix: str) -> None:
        self._fake.routes[ip_network(prefix)] = "eth0"

    def remove_tap(self, name: str) -> None:
        del self._fake.taps[name]
        self._fake.routes = {p: to for p, to in self._fake.routes.items() if to != name}

    def add_tap(self, name: str) -> None:
        self._fake.taps[name] = Interface(bytes(6), ())

    def has_tap(self, name: str) -> bool:
        return name in self._fake.taps

    def writes(self) -> int:
        return self._fake.writes


class LinuxHands:
    """Hands with `ip`; writes are netlink batches, nft transactions and sysctls."""

    def __init__(self, space: Namespace) -> None:
        self.space, self._writes = space, 0

    def count(self, real: Callable[..., T]) -> Callable[..., T]:
        """The same function, counted as a write; an empty batch is none."""

        def counted(*arguments: Any) -> T:
            self._writes += arguments[-1] != []
            return real(*arguments)

        return counted

    def _route(self, verb: str, prefix: str, *words: str) -> None:
        family = "-6" if ":" in prefix else "-4"
        self.space.ip(family, "route", verb, prefix, *words, "proto", "77", "metric", "7")

    def remove_route(self, prefix: str) -> None:
        self._route("del", prefix)

    def misdirect(self, prefix: str) -> None:
        self._route("replace", prefix, "dev", "eth0")

    def add_route(self, prefix: str) -> None:
        self._route("add", prefix, "dev", "eth0")

    def remove_tap(self, name: str) -> None:
        self.space.ip("link", "del", name)

    def add_tap(self, name: str) -> None:
        self.space.ip("tuntap", "add", "dev", name, "mode", "tap")

    def has_tap(self, name: str) -> bool:
        return f" {name}: " in self.space.ip("-o", "link")

    def writes(self) -> int:
        return self._writes

    @contextlib.contextmanager
    def monitor(self) -> Iterator[Callable[[], str]]:
        """Hear what the kernel and nftables tell of changes; answers a reading of it.

        Of links it tells late: it begins once those of taps that nobody holds open are told.
        """
        taps = f" {TAP_PREFIX}"
        wait_for(
            lambda: (
                not any(
                    taps in line and "state UNKNOWN" in line
                    for line in self.space.ip("-o", "link").splitlines()
                )
            ),
            "the taps' links are at rest",
        )
        with tempfile.TemporaryFile("w+") as heard:
            commands = (["ip", "monitor", "link", "address", "route", "rule"], ["nft", "monitor"])
            inside = ["ip", "netns", "exec", self.space.name]
            monitors = [subprocess.Popen([*inside, *c], stdout=heard) for c in commands]

            def told() -> str:
                return os.pread(heard.fileno(), 1 << 20, 0).decode()

            try:

                def listening() -> bool:
                    self.add_route("192.0.2.0/24")
                    self.remove_route("192.0.2.0/24")
                    self.space.run("nft", "add table inet listening; delete table inet listening")
                    return "192.0.2" in told() and "listening" in told()

                wait_for(listening, "the monitors listen")
                # What is told in order is told to its end once the last of it is.
                self.add_route("198.51.100.0/24")
                self.remove_route("198.51.100.0/24")
                self.space.run("nft", "add table inet last; delete table inet last")
                wait_for(
                    lambda: told().count("198.51.100") == 2 and "delete table inet last" in told(),
                    "the last of it",
                )
                begun = len(told())
                yield lambda: told()[begun:]
            finally:
                for monitor in monitors:
                    monitor.terminate()
                    monitor.wait()


def fake_plane(dc_prefixes: tuple[Prefix, ...] = ()) -> Iterator[Plane]:
    loop = asyncio.new_event_loop()
    fake = FakeDataPlane(frozenset(NEAR.locators), dc_prefixes)

    def leads(prefix: str) -> str:
        return fake.routes.get(ip_network(prefix), "").replace("tunnel", "dev vmmob-tun tunnel")

    def way(address: str, sender: str) -> str:
        prefix = ip_network(address)
        inside = any(
            dc.version == prefix.version and dc.overlaps(ip_network(sender)) for dc in dc_prefixes
        )
        found = (fake.inside_routes.get(prefix) if inside else None) or fake.routes.get(prefix, "")
        if found.startswith("vmt"):
            return f"tap {found}"
        return "tunnel" if found.startswith("tunnel") else found or "fabric"

    yield Plane(fake, loop.run_until_complete, leads, FakeHands(fake), way)
    loop.close()


def linux_plane(
    folder: Path, back_end: TunnelWish, dc_prefixes: tuple[Prefix, ...] = ()
) -> Iterator[Plane]:
    kind = ("d" if dc_prefixes else "") + back_end[0]  # a module's standing one lives beside
    space, peer = Namespace(f"{kind}n"), Namespace(f"{kind}p")
    try:
        join(space, "eth0", peer, "eth0", 1)
        space.ip("route", "add", "default", "via", "10.0.1.2")
        space.ip("-6", "route", "add", "default", "via", "fd00:1::2")
        locators = IPv4Address("10.0.1.1"), IPv6Address("fd00:1::1")
        settings = LinuxSettings(*locators, folder, dc_prefixes=dc_prefixes, tunnel=back_end)
        driver = space.call(LinuxDataPlane, settings)

        def leads(prefix: str) -> str:
            family = "-6" if ":" in prefix else "-4"
            return space.ip(family, "route", "show", "exact", prefix, "proto", "77").strip()

        def way(address: str, sender: str) -> str:
            words = space.ip("route", "get", address, "from", sender, "iif", "eth0").split()
            device = words[words.index("dev") + 1]
            gateway = words[words.index("via") + 1] if "via" in words else ""
            if device == "eth0":
                return "fabric" if gateway in ("10.0.1.2", "fd00:1::2") else f"via {gateway}"
            return "tunnel" if device in TUNNEL_DEVICES else f"tap {device}"

        hands = LinuxHands(space)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Netlink, "batch", hands.count(Netlink.batch))
            patch.setattr(filter, "run_nft", hands.count(filter.run_nft))
            patch.setattr(sysctl, "write", hands.count(sysctl.write))
            yield Plane(driver, space.await_, leads, hands, way, back_end, folder)
        space.await_(driver.start())
        space.await_(driver.remove_all())
    finally:
        space.close()
        peer.close()
