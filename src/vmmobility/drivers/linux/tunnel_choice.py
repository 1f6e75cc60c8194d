"""Which back end carries tunnelled packets here: asked of the kernel, or of the operator.

The probe makes what the kernel tunnels need (devices, a route with an outer header, the guard's
tables) in a network namespace of its own, which ends with the thread that made it: nothing is left
behind, whatever happens.  Not here: what the back ends do (relay_tunnels.py, kernel_tunnels.py).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network

from vmmobility.drivers.linux import rtnetlink
from vmmobility.drivers.linux.kernel_tunnels import KernelTunnels
from vmmobility.drivers.linux.netlink import Netlink, Refusal
from vmmobility.drivers.linux.ownership import KERNEL_TUNNELS, TUNNELLED_TABLE
from vmmobility.drivers.linux.relay_orders import RelayOrders
from vmmobility.drivers.linux.relay_tunnels import RelayTunnels
from vmmobility.drivers.linux.rtnetlink import NextHop, Route
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.drivers.linux.tunnel_guard import base_script
from vmmobility.drivers.linux.tunnel_messages import KINDS, Encapsulation, new_tunnel
from vmmobility.drivers.linux.tunnels import Choice, Tunnels
from vmmobility.errors import EnvironmentProblem, VmMobilityError
from vmmobility.wire.values import FAMILIES

_CLONE_NEWNET = 0x40000000
_NFT_PATIENCE_S = 20.0
_ENDS = {
    4: ("192.0.2.1", "192.0.2.2", "198.51.100.1/32"),
    6: ("2001:db8::1", "2001:db8::2", "2001:db8:1::1/128"),
}
"""Documentation addresses: both ends of a tunnel, and a prefix that leads into it."""

REMEDY = 'load the kernel modules (`modprobe ipip ip6_tunnel`), or set tunnel = "auto"'


async def choose(settings: LinuxSettings) -> Choice:
    """The back end to use.  Raises EnvironmentProblem where the one that is asked for cannot be."""
    if settings.tunnel == "relay":
        return Choice("relay", "the configuration says so")
    versions = tuple(v for v in FAMILIES if settings.locator(v) is not None)
    lack = await _in_a_thread_of_its_own(versions)
    if settings.tunnel == "kernel":
        if lack:
            raise EnvironmentProblem(f"kernel tunnels cannot be used: {lack}", REMEDY)
        return Choice("kernel", "the configuration says so")
    return Choice("relay", lack) if lack else Choice("kernel", "this kernel has all that it takes")


def make_tunnels(
    choice: Choice, netlink: Netlink, orders: RelayOrders, settings: LinuxSettings
) -> Tunnels:
    """The back end that was chosen; nothing in the kernel is touched yet."""
    orders.client.carries = choice.back_end == "relay"
    if choice.back_end == "relay":
        return RelayTunnels(netlink, orders)
    return KernelTunnels(netlink, orders, settings)


async def _in_a_thread_of_its_own(versions: tuple[int, ...]) -> str:
    """Not of a shared pool: the thread that probes is in another network namespace from then on."""
    with ThreadPoolExecutor(1, thread_name_prefix="tunnel probe") as own:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(own, lack_of_kernel_tunnels, versions)


def lack_of_kernel_tunnels(versions: tuple[int, ...] = FAMILIES) -> str:
    """What keeps this kernel from carrying tunnels of these IP versions; "" if nothing does.

    For a thread of its own: it enters a new network namespace, and does not come back.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        why = os.strerror(ctypes.get_errno())
        return f"a network namespace to probe in cannot be made: {why}"
    try:
        with Netlink() as netlink:
            for version in versions:
                if lack := _lack_of(netlink, version):
                    return lack
    except VmMobilityError as error:
        return error.message
    except OSError as error:
        return f"the kernel cannot be probed: {error}"
    return _lack_of_guard()


def _lack_of(netlink: Netlink, version: int) -> str:
    name, kind = KERNEL_TUNNELS[version], KINDS[version]
    (refused,) = netlink.batch([new_tunnel(name, version, 1280)])
    if refused is not None:
        absent = refused.number == errno.EOPNOTSUPP
        return f"this kernel has no {kind} devices" if absent else f"{kind} device: {refused}"
    link = rtnetlink.link_named(netlink, name)
    if link is None:
        return f"a new {kind} device is not there"
    own, peer, prefix = _ENDS[version]
    tunnel = Encapsulation(ip_address(own), ip_address(peer))
    route = Route(TUNNELLED_TABLE, ip_network(prefix), NextHop(link.index, tunnel=tunnel))
    requests = [rtnetlink.set_link(link.index, up=True), rtnetlink.new_route(route)]
    for outcome in netlink.batch(requests):
        if isinstance(outcome, Refusal):
            return f"IPv{version} routes cannot name an outer header: {outcome}"
    return ""


def _lack_of_guard() -> str:
    """nft runs in this thread's namespace, as a child of it."""
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=base_script(), text=True, capture_output=True, check=False,
            timeout=_NFT_PATIENCE_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the guard's nftables rules cannot be tried: {error}"
    lines = done.stderr.strip().splitlines() or ["no reason given"]
    return f"the guard's nftables rules are refused: {lines[0]}" if done.returncode else ""
