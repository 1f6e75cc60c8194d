"""The server's end of its guests' circuits: a tap, a VXLAN to the NVE, a bridge between the two.

Each interface of a guest has a bridge of its own, whose only other port is the circuit: a guest
reaches nobody but its NVE, and frames that come early wait in its tap.  What a guest sends to the
bridge itself, that is to this host, is dropped.  All of it outlives the agent.

    vmt012345678.0  the guest's tap        (the names end alike)
    vmb012345678.0  the bridge
    vmx012345678.0  the circuit's end

Not here: the NVE's end (ports.py), guests, the agent (drivers/hypervisor/server_agent.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vmmobility.drivers.linux import environment, filter, rtnetlink, sysctl
from vmmobility.drivers.linux.circuit_messages import (
    CIRCUIT_MTU,
    join_bridge,
    new_bridge,
    new_circuit,
)
from vmmobility.drivers.linux.netlink import Netlink, Request
from vmmobility.drivers.linux.ownership import NFT_SERVER_TABLE, TAP_PREFIX, is_our_tap
from vmmobility.drivers.linux.tap import create_tap
from vmmobility.errors import DataPlaneError, EnvironmentProblem
from vmmobility.wire.server_frames import CIRCUIT_PORT
from vmmobility.wire.values import Address

BRIDGE_PREFIX, CIRCUIT_PREFIX = "vmb", "vmx"
TAP_QUEUE_LENGTH = 10_000
LEAST_MTU6 = CIRCUIT_MTU + 70  # Ethernet, VXLAN, UDP and IPv6 headers
_WORD = {4: "ip", 6: "ip6"}


class ServerCircuits:
    """All circuits of this server.  own, nve: the two ends of the access link, of one family."""

    def __init__(self, own: Address, nve: Address) -> None:
        self._own, self._nve = own, nve
        self._netlink: Netlink | None = None

    async def start(self) -> None:
        """Check what this machine must have, and close it to all but the NVE's frames.

        Raises EnvironmentProblem or DataPlaneError.
        """
        environment.check_rights_and_programs()
        self._netlink = Netlink()
        self._check_mtu()
        await filter.run_nft(removal_script() + guard_script(self._nve))

    def _check_mtu(self) -> None:
        """Over IPv4 what is too long is fragmented; over IPv6 the kernel drops it."""
        held = {address: index for index, address in rtnetlink.addresses(self._kernel)}
        links = {link.index: link for link in rtnetlink.links(self._kernel)}
        link = links.get(held.get(self._own, 0))
        if self._own.version == 6 and link is not None and link.mtu < LEAST_MTU6:
            raise EnvironmentProblem(
                f"the access link {link.name} has an MTU of {link.mtu}, and IPv6 circuits need "
                f"{LEAST_MTU6}",
                f"`ip link set {link.name} mtu {LEAST_MTU6}` at both ends, or IPv4 addresses",
            )

    def close(self) -> None:
        """Stop using the kernel; circuits stay."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    async def remove_all(self) -> None:
        """Remove every circuit, and the guard."""
        self.remove(list(self.names()))
        await filter.run_nft(removal_script())

    def names(self) -> Collection[str]:
        """See server_agent.Circuits.  Raises DataPlaneError."""
        links = [link.name for link in rtnetlink.links(self._kernel)]
        taps = {name for name in links if is_our_tap(name)}
        others = (BRIDGE_PREFIX, CIRCUIT_PREFIX)
        return taps | {TAP_PREFIX + name[3:] for name in links if name.startswith(others)}

    def ensure(self, ports: Mapping[str, int]) -> None:
        """See server_agent.Circuits."""
        for name, circuit in ports.items():
            self._ensure(name, circuit)

    def remove(self, ports: Collection[str]) -> None:
        """See server_agent.Circuits.  A guest that holds its tap open loses it."""
        for name in ports:
            for one in (name, *_names(name)):
                link = rtnetlink.link_named(self._kernel, one)
                if link is not None:
                    self._kernel.batch([rtnetlink.delete_link(link.index)])

    @property
    def _kernel(self) -> Netlink:
        if self._netlink is None:
            raise DataPlaneError("the server's circuits are not started", "call start() first")
        return self._netlink

    def _ensure(self, tap: str, circuit: int) -> None:
        bridge, end = _names(tap)
        create_tap(tap)
        there = rtnetlink.link_named(self._kernel, end)
        if there is not None and (
            there.circuit is None
            or not there.circuit.usual
            or (there.circuit.number, there.circuit.remote, there.circuit.local)
            != (circuit, self._nve, self._own)
        ):
            self._do(end, rtnetlink.delete_link(there.index))
            there = None
        if there is None:
            self._do(end, new_circuit(end, circuit, self._nve, self._own))
        if rtnetlink.link_named(self._kernel, bridge) is None:
            self._do(bridge, new_bridge(bridge))
        for name in (tap, bridge, end):
            sysctl.ensure(_settings(name))
        index = self._index(bridge)
        for name in (end, tap):
            link = rtnetlink.link_named(self._kernel, name)
            if link is None:
                raise DataPlaneError(f"{name} vanished", "does somebody else remove it?")
            if link.master != index:
                self._do(name, join_bridge(link.index, index))
            length = TAP_QUEUE_LENGTH if name == tap else None
            self._do(name, rtnetlink.set_link(link.index, up=True, queue_length=length))
        self._do(bridge, rtnetlink.set_link(index, up=True))

    def _index(self, name: str) -> int:
        link = rtnetlink.link_named(self._kernel, name)
        if link is None:
            raise DataPlaneError(f"{name} vanished", "does somebody else remove it?")
        return link.index

    def _do(self, name: str, request: Request) -> None:
        (refused,) = self._kernel.batch([request])
        if refused is not None:
            raise DataPlaneError(f"{name}: {refused}", "see the kernel's log")


def _names(tap: str) -> tuple[str, str]:
    """The bridge and the circuit's end that belong to a tap."""
    rest = tap.removeprefix(TAP_PREFIX)
    return BRIDGE_PREFIX + rest, CIRCUIT_PREFIX + rest


def _settings(name: str) -> dict[str, str]:
    """This host has no part in what a guest sends: no address, no answer."""
    return {
        f"net/ipv6/conf/{name}/disable_ipv6": "1",
        f"net/ipv4/conf/{name}/arp_ignore": "8",
        f"net/ipv4/conf/{name}/forwarding": "0",
    }


def guard_script(nve: Address) -> str:
    """Frames come from the NVE alone; and this host hears nothing of what guests say."""
    table = f"inet {NFT_SERVER_TABLE}"
    source = f"{_WORD[nve.version]} saddr {nve}"
    # Not where packets are routed: a kernel with br_netfilter shows bridged ones there, too.
    hook = "type filter hook input priority -160; policy accept;"
    # codespell:ignore-begin iifname
    lines = [
        f"add table {table}",
        f"add chain {table} arriving {{ {hook} }}",
        f'add rule {table} arriving iifname "{BRIDGE_PREFIX}*" counter drop',
        f"add rule {table} arriving udp dport {CIRCUIT_PORT} {source} accept",
        f"add rule {table} arriving udp dport {CIRCUIT_PORT} counter drop",
    ]
    # codespell:ignore-end
    return "\n".join(lines) + "\n"


def removal_script() -> str:
    """Remove the table, whether it exists or not."""
    return f"add table inet {NFT_SERVER_TABLE}\ndelete table inet {NFT_SERVER_TABLE}\n"
