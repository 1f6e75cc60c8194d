"""What this machine must have and be: rights, devices, programs, sysctls, TUN, rules.

Each missing thing is an EnvironmentProblem with its remedy.  Not here: anything of a VM.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator

from vmmobility.drivers.linux import rtnetlink, sysctl
from vmmobility.drivers.linux.netlink import Netlink, Refusal, Request
from vmmobility.drivers.linux.outside import inside_rules
from vmmobility.drivers.linux.ownership import (
    ROUTE_METRIC,
    RULE_PRIORITY,
    TUN_NAME,
    TUNNELLED_TABLE,
    is_our_tap,
)
from vmmobility.drivers.linux.rtnetlink import Link, NextHop, Route, Rule
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.drivers.linux.tap import check_tun_device, create_tun
from vmmobility.errors import DataPlaneError, EnvironmentProblem
from vmmobility.wire.values import FAMILIES

_OUTER_HEADER = {4: 20, 6: 40}
_LEAST_IPV6_MTU = 1280
_EEXIST = 17
_RUNNING_PATIENCE_S, _RUNNING_POLL_S = 3.0, 0.001
_TUN_QUEUE_LENGTH = 10_000


def check_rights_and_programs() -> None:
    """Raise EnvironmentProblem unless this process may and can change the kernel."""
    if os.geteuid() != 0:
        raise EnvironmentProblem("the data plane needs root", "run the NVE as root")
    check_tun_device()
    if shutil.which("nft") is None:
        raise EnvironmentProblem("the program nft is missing", "install the package nftables")


def find_underlays(netlink: Netlink, settings: LinuxSettings) -> list[Link]:
    """The underlay interfaces: those named, or those that hold the locators.

    A locator on the loopback interface leaves them to the others that are up.
    """
    links = {link.index: link for link in rtnetlink.links(netlink)}
    if settings.underlays:
        by_name = {link.name: link for link in links.values()}
        missing = [name for name in settings.underlays if name not in by_name]
        if missing:
            raise EnvironmentProblem(
                f"underlay interface {missing[0]} does not exist", "correct `underlays`"
            )
        return [by_name[name] for name in settings.underlays]
    holders = {address: links[i] for i, address in rtnetlink.addresses(netlink) if i in links}
    found: dict[str, Link] = {}
    for version in FAMILIES:
        locator = settings.locator(version)
        if locator is None:
            continue
        if locator not in holders:
            raise EnvironmentProblem(
                f"no interface holds the locator {locator}",
                "give the address to the underlay interface, or correct the locator",
            )
        found[holders[locator].name] = holders[locator]
    real = [link for link in found.values() if not link.loopback]
    if real or not found:
        return real
    return [
        link
        for link in links.values()
        if link.up and not link.loopback and not is_our_tap(link.name) and link.name != TUN_NAME
    ]


def ensure_tun(netlink: Netlink, underlays: list[Link]) -> int:
    """Have the TUN device with honest MTUs; answers its interface index."""
    link = rtnetlink.link_named(netlink, TUN_NAME)
    if link is None:
        create_tun(TUN_NAME)
        link = rtnetlink.link_named(netlink, TUN_NAME)
        if link is None:
            raise DataPlaneError(f"{TUN_NAME} vanished", "does somebody else remove it?")
    mtu = _tun_mtu(underlays, 4)
    if link.mtu != mtu or link.queue_length != _TUN_QUEUE_LENGTH:
        request = rtnetlink.set_link(link.index, mtu=mtu, queue_length=_TUN_QUEUE_LENGTH)
        _must(netlink, [request], TUN_NAME)
    if not link.up:
        _must(netlink, [rtnetlink.set_link(link.index, up=True)], TUN_NAME)
    sysctl.ensure(tun_settings(underlays))
    return link.index


def _tun_mtu(underlays: list[Link], version: int) -> int:
    return min((u.mtu for u in underlays), default=1500) - _OUTER_HEADER[version]


def tun_settings(underlays: list[Link]) -> dict[str, str]:
    """The TUN device's sysctls."""
    return sysctl.for_tun(TUN_NAME, max(_tun_mtu(underlays, 6), _LEAST_IPV6_MTU))


def tun_faults(link: Link | None, underlays: list[Link]) -> Iterator[str]:
    """What is wrong with the TUN device, in words."""
    if link is None:
        yield "is gone"
        return
    if not link.up:
        yield "is down"
    mtu = _tun_mtu(underlays, 4)
    if link.mtu != mtu:
        yield f"has the MTU {link.mtu}; it should be {mtu}"
    if link.queue_length != _TUN_QUEUE_LENGTH:
        yield f"has a queue of {link.queue_length} packets"


async def until_running(netlink: Netlink, name: str) -> None:
    """Wait until an interface that was attached to just now takes packets.

    The kernel turns its queue on a moment later (link watch), and drops what comes before.
    """
    deadline = asyncio.get_running_loop().time() + _RUNNING_PATIENCE_S
    while asyncio.get_running_loop().time() < deadline:
        link = rtnetlink.link_named(netlink, name)
        if link is not None and link.running:
            return
        await asyncio.sleep(_RUNNING_POLL_S)
    raise DataPlaneError(f"{name} does not come up", "see the relay's log and `ip link`")


def tunnelled_rules() -> list[Rule]:
    """The rules by which decapsulated packets see nothing but taps."""
    return [Rule(v, TUN_NAME, TUNNELLED_TABLE, RULE_PRIORITY) for v in FAMILIES]


def tunnelled_blackholes() -> list[Route]:
    """The end of the tunnelled table: what no tap takes goes nowhere."""
    return [
        Route(TUNNELLED_TABLE, rtnetlink.default_prefix(v), NextHop(0), ROUTE_METRIC)
        for v in FAMILIES
    ]


def node_rules(settings: LinuxSettings) -> list[Rule]:
    """All rules of ours at an NVE."""
    return [*tunnelled_rules(), *inside_rules(settings.dc_prefixes)]


def ensure_rules(netlink: Netlink, settings: LinuxSettings) -> None:
    """Have the rules and the blackholes, and no other rule of ours.  Raises DataPlaneError."""
    wanted = node_rules(settings)
    held = list(rtnetlink.rules_of_ours(netlink))
    blackholes = [rtnetlink.new_route(route) for route in tunnelled_blackholes()]
    missing = [rtnetlink.new_rule(rule) for rule in wanted if rule not in held]
    _must(netlink, blackholes + missing, "policy rule")
    surplus = [rtnetlink.delete_rule(rule) for rule in held if rule not in wanted]
    if surplus:
        netlink.batch(surplus)


def _must(netlink: Netlink, requests: list[Request], what: str) -> None:
    for outcome in netlink.batch(requests):
        if isinstance(outcome, Refusal) and outcome.number != _EEXIST:
            raise DataPlaneError(f"{what}: {outcome}", "see the kernel's log")
