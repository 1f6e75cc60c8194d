"""A path on which a way to a VM is measured: the same nodes for each way.

host -- router -- a (redirects)
          |
          b -- VM

Every packet to the VM goes host, router, a, router, b, VM; back it goes straight.  `plain`: by
routes alone; `relay` and `kernel`: a redirects to b by that back end's tunnel, both NVEs' data
planes being the real ones.  Only the last device is another: a veth in the tap's place, for a tap
would measure the process behind it.
Not here: measuring (stream.py, __main__.py).  Rests on tests/contract and its namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Literal

from tests.contract.dataplane_fabric import ABSENT, LOCAL, OWN, VM, nve
from tests.contract.namespaces import Namespace, join
from vmmobility.drivers.linux.driver import LinuxDataPlane
from vmmobility.drivers.linux.ownership import TUNNELLED_TABLE
from vmmobility.drivers.linux.settings import LinuxSettings, TunnelWish
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy

Way = Literal["plain", "relay", "kernel"]

A, B = nve("a", 1, 2), nve("b", 2, 2)
_PLAIN_TABLE = "100"
_GATEWAY = {4: "169.254.1.1", 6: "fe80::1"}
_LINKS = {4: "10.0.{}.{}", 6: "fd00:{}::{}"}


@dataclass(frozen=True, slots=True)
class Measured:
    """Where a stream begins and ends; `nves`: a and b, where they are NVEs."""

    way: Way
    host: Namespace
    vm: Namespace
    nves: tuple[tuple[Namespace, LinuxDataPlane], ...]

    def redirected(self) -> int:
        """Packets that a has led into the tunnel; long ones that were joined count once."""
        space, driver = self.nves[0]
        return space.await_(driver.traffic())[VM].redirected


@contextmanager
def path(way: Way, folder: Path) -> Iterator[Measured]:
    """Built, and taken down again."""
    spaces = {name: Namespace(f"{way[0]}{name}") for name in ("h", "r", "a", "b", "v")}
    host, router, a, b, vm = spaces.values()
    drivers: list[tuple[Namespace, LinuxDataPlane]] = []
    try:
        join(router, "toa", a, "eth0", 1)
        join(router, "tob", b, "eth0", 2)
        join(host, "eth0", router, "toh", 9)
        join(b, "tovm", vm, "eth0", 4)
        _route(host, router, a, b, vm)
        if way == "plain":
            for version in (4, 6):
                a.ip(f"-{version}", "route", "add", OWN[version], "via", _address(version, 1, 1))
            a.run("sysctl", "-qw", *_FORWARDING)
            b.run("sysctl", "-qw", *_FORWARDING)
            _deliver(b, "main")
        else:
            drivers += _nves(way, a, b, folder)
            _deliver(b, str(TUNNELLED_TABLE))
        yield Measured(way, host, vm, tuple(drivers))
    finally:
        for space, driver in drivers:
            space.await_(driver.remove_all())
        for space in spaces.values():
            space.close()


_FORWARDING = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


def _address(version: int, link: int, host: int) -> str:
    return _LINKS[version].format(link, host)


def _route(host: Namespace, router: Namespace, a: Namespace, b: Namespace, vm: Namespace) -> None:
    """Defaults to the router; it leads to a what comes from the host, to b what comes from a."""
    router.run("sysctl", "-qw", *_FORWARDING)
    for version in (4, 6):
        family, own = f"-{version}", OWN[version]
        for space, link, hop in ((host, 9, 2), (a, 1, 1), (b, 2, 1)):
            space.ip(family, "route", "add", "default", "via", _address(version, link, hop))
        router.ip(family, "route", "add", own, "via", _address(version, 1, 2))
        router.ip(family, "rule", "add", "iif", "toa", "table", _PLAIN_TABLE)  # codespell:ignore
        router.ip(family, "route", "add", own, "via", _address(version, 2, 2), "table",
                  _PLAIN_TABLE)  # fmt: skip
        words = ("nodad",) if version == 6 else ()
        vm.ip("addr", "add", own, "dev", "eth0", *words)
        vm.ip(family, "route", "add", "default", "via", _address(version, 4, 1), "src", own)


def _nves(
    way: TunnelWish, a: Namespace, b: Namespace, folder: Path
) -> list[tuple[Namespace, LinuxDataPlane]]:
    """Both NVEs' data planes: a redirects to b, which takes that."""
    made = []
    to_b = replace(ABSENT, forwarding=Forwarding.REDIRECT, target=B, policy=RedirectPolicy.TUNNEL)
    for space, own, state in ((a, A, to_b), (b, B, replace(LOCAL, accept_from=(A,)))):
        ipv4, ipv6 = own.ipv4 or IPv4Address(0), own.ipv6 or IPv6Address(0)
        settings = LinuxSettings(ipv4, ipv6, folder / f"{way}-{own.nve_id}", tunnel=way)
        driver = space.call(LinuxDataPlane, settings)
        made.append((space, driver))
        space.await_(driver.start())
        failures = space.await_(driver.resync({state.vm: state}))
        assert failures == [], failures
    return made


def _deliver(b: Namespace, table: str) -> None:
    """What b would send to the tap goes to the VM's veth."""
    for version in (4, 6):
        b.ip(f"-{version}", "route", "replace", OWN[version], "via", _address(version, 4, 2),
             "dev", "tovm", "table", table, "metric", "7", "proto", "77")  # fmt: skip
