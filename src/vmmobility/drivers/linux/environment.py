"""What this machine must have and be: rights, devices, programs, underlays, rules.

Each missing thing is an EnvironmentProblem with its remedy.  Not here: anything of a VM, or of one
kind of tunnel (relay_tunnels.py, kernel_tunnels.py).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection, Sequence

from vmmobility.drivers.linux import policy_rules, rtnetlink, sysctl
from vmmobility.drivers.linux.netlink import Netlink, Refusal, Request
from vmmobility.drivers.linux.outside import inside_rules
from vmmobility.drivers.linux.ownership import (
    ROUTE_METRIC,
    TUNNEL_DEVICES,
    TUNNELLED_TABLE,
    is_our_tap,
)
from vmmobility.drivers.linux.policy_rules import Rule
from vmmobility.drivers.linux.rtnetlink import Link, NextHop, Route
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.drivers.linux.tap import check_tun_device
from vmmobility.errors import DataPlaneError, EnvironmentProblem
from vmmobility.wire.values import FAMILIES

_EEXIST = 17
_RUNNING_PATIENCE_S, _RUNNING_POLL_S = 3.0, 0.001


def check_rights_and_programs() -> None:
    """Raise EnvironmentProblem unless this process may and can change the kernel."""
    if os.geteuid() != 0:
        raise EnvironmentProblem("the data plane needs root", "run the NVE as root")
    check_tun_device()
    if shutil.which("nft") is None:
        raise EnvironmentProblem("the program nft is missing", "install the package nftables")
    check_ip_versions()


def check_ip_versions() -> None:
    """Raise EnvironmentProblem unless the kernel has both IP versions, as rules and taps need.

    Where an operator has turned IPv6 off by a setting it is there.
    """
    if not sysctl.exists("net/ipv6/conf"):
        raise EnvironmentProblem(
            "this kernel has no IPv6, whose rules and settings the data plane needs",
            "boot without ipv6.disable=1; net.ipv6.conf.all.disable_ipv6=1 turns it off as well, "
            "and may stay",
        )


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
        if link.up
        and not link.loopback
        and not is_our_tap(link.name)
        and link.name not in TUNNEL_DEVICES
    ]


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


def tunnelled_blackholes() -> list[Route]:
    """The end of the tunnelled table: what no tap takes goes nowhere."""
    return [
        Route(TUNNELLED_TABLE, rtnetlink.default_prefix(v), NextHop(0), ROUTE_METRIC)
        for v in FAMILIES
    ]


def node_rules(of_tunnels: Sequence[Rule], settings: LinuxSettings) -> list[Rule]:
    """All rules of ours at an NVE."""
    return [*of_tunnels, *inside_rules(settings.dc_prefixes)]


def ensure_rules(netlink: Netlink, wanted: Sequence[Rule]) -> None:
    """Have the blackholes, and these rules.  Raises DataPlaneError."""
    held = list(policy_rules.rules_of_ours(netlink))
    blackholes = [rtnetlink.new_route(route) for route in tunnelled_blackholes()]
    missing = [policy_rules.new_rule(rule) for rule in wanted if rule not in held]
    must(netlink, blackholes + missing, "policy rule")


def remove_routing(netlink: Netlink) -> None:
    """Remove all tunnel devices, routes and rules of ours, in this order.  Raises DataPlaneError.

    The table of tunnelled packets, and the rules that lead there, stand while any can come.
    """
    _remove_tunnels(netlink, ())
    routes = list(rtnetlink.routes_of_ours(netlink))
    netlink.batch([rtnetlink.delete_route(route) for route in routes])
    remove_surplus(netlink, (), ())


def _remove_tunnels(netlink: Netlink, devices: Collection[str]) -> None:
    for name in TUNNEL_DEVICES:
        link = rtnetlink.link_named(netlink, name) if name not in devices else None
        if link is not None:
            must(netlink, [rtnetlink.delete_link(link.index)], name)


def remove_surplus(netlink: Netlink, rules: Sequence[Rule], devices: Collection[str]) -> None:
    """Remove tunnel devices of ours but these, and then rules of ours but these.

    In this order: a device whose rules are gone would let packets out into the main table.
    """
    _remove_tunnels(netlink, devices)
    held = policy_rules.rules_of_ours(netlink)
    surplus = [policy_rules.delete_rule(rule) for rule in held if rule not in rules]
    if surplus:
        netlink.batch(surplus)


def must(netlink: Netlink, requests: list[Request], what: str) -> None:
    """Do these.  Raises DataPlaneError, which names `what`; what stands already is no error."""
    for outcome in netlink.batch(requests):
        if isinstance(outcome, Refusal) and outcome.number != _EEXIST:
            raise DataPlaneError(f"{what}: {outcome}", "see the kernel's log")
