"""A fabric's namespaces, links, addresses, sysctls and own routes in the kernel: up and down.

Not here: daemons and processes (daemons.py, teardown.py).  Rests on iproute2's batches, which
build 200 namespaces in 1.4 s.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from vmmobility.errors import LabError
from vmmobility.lab.fabric import Fabric, Vm
from vmmobility.lab.inside import NETNS, inside
from vmmobility.lab.routing import kernel_routes

_ALL = {
    "net/ipv4/conf/{}/rp_filter": "0",
    "net/ipv4/conf/{}/send_redirects": "0",
    "net/ipv4/conf/{}/accept_redirects": "0",
    "net/ipv6/conf/{}/accept_ra": "0",
    "net/ipv6/conf/{}/accept_redirects": "0",
    "net/ipv6/conf/{}/accept_dad": "0",
}
_ROUTER = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # Flows between two hosts are spread by their ports over paths of equal cost.
    "net/ipv4/fib_multipath_hash_policy": "1",
    "net/ipv6/fib_multipath_hash_policy": "1",
}
GUEST_MTU = 1500
GATEWAYS = ("169.254.1.1", "fe80::1")


class Namespaces:
    """The kernel side of one lab: namespaces named `PREFIX-NODE`."""

    def __init__(self, fabric: Fabric, prefix: str) -> None:
        self.fabric = fabric
        self.prefix = prefix

    def name(self, node: str) -> str:
        """The namespace of a node, VM or shared segment."""
        return f"{self.prefix}-{node}"

    def up(self) -> None:
        """Build all of it."""
        names = sorted(self.fabric.names())
        _batch(None, [f"netns add {self.name(n)}" for n in names])
        routers = {node.name for node in self.fabric.of_kind("router")}
        for node in names:
            inside(self.name(node), lambda node=node: _sysctls(node in routers))  # type: ignore[misc]
        _batch(None, self._link_lines())
        per_node: dict[str, list[str]] = defaultdict(list)
        for node in names:
            per_node[node].append("link set lo up")
        self._segment_lines(per_node)
        self._address_lines(per_node)
        for vm in self.fabric.vms:
            if vm.kind == "netns":
                per_node[vm.name] += _vm_lines(self.fabric, vm)
        for node, routes in kernel_routes(self.fabric).items():
            per_node[node] += [
                f"route add {r.prefix} via {r.next_hop} dev {r.interface}" for r in routes
            ]
        for node, lines in per_node.items():
            _batch(self.name(node), lines)

    def _link_lines(self) -> Iterable[str]:
        for link in self.fabric.links:
            mtu = link.mtu or self.fabric.mtu
            if link.shared:
                for number, end in enumerate(link.ends):
                    yield (
                        f"link add name {end.interface} netns {self.name(end.node)} mtu {mtu} "
                        f"type veth peer name port{number} netns {self.name(link.name)} mtu {mtu}"
                    )
            else:
                one, two = link.ends
                yield (
                    f"link add name {one.interface} netns {self.name(one.node)} mtu {mtu} "
                    f"type veth peer name {two.interface} netns {self.name(two.node)} mtu {mtu}"
                )

    def _segment_lines(self, per_node: dict[str, list[str]]) -> None:
        for link in self.fabric.links:
            if link.shared:
                lines = per_node[link.name]
                lines.append("link add name br0 type bridge mcast_snooping 0")
                for number in range(len(link.ends)):
                    lines.append(f"link set port{number} master br0 up")
                lines.append("link set br0 up")

    def _address_lines(self, per_node: dict[str, list[str]]) -> None:
        for link in self.fabric.links:
            for end in link.ends:
                for address in end.addresses:
                    nodad = " nodad" if address.version == 6 else ""
                    per_node[end.node].append(f"address add {address} dev {end.interface}{nodad}")
                per_node[end.node].append(f"link set {end.interface} up")

    def down(self) -> None:
        """Delete every namespace of this lab that exists."""
        delete(existing(self.prefix))


def existing(prefix: str) -> list[str]:
    """The namespaces of the lab `prefix` that exist now."""
    if not NETNS.is_dir():
        return []
    return sorted(path.name for path in NETNS.iterdir() if path.name.startswith(prefix + "-"))


def delete(names: Sequence[str]) -> None:
    """Delete namespaces; those that are gone already do not matter."""
    if names:
        lines = "".join(f"netns del {name}\n" for name in names)
        subprocess.run(["ip", "-force", "-batch", "-"], input=lines, text=True,
                       capture_output=True, check=False)  # fmt: skip


def vm_addresses(fabric: Fabric, vm: Vm) -> tuple[str, ...]:
    """The VM's addresses as it configures them itself: host ones, or its subnet's if on-link."""
    result = []
    for address in vm.addresses:
        length: int = address.max_prefixlen
        if vm.on_link:
            prefixes = fabric.node(vm.home).home_prefixes
            length = next(p.prefixlen for p in prefixes if address.ip in p)
        result.append(f"{address.ip}/{length}")
    return tuple(result)


def _vm_lines(fabric: Fabric, vm: Vm) -> list[str]:
    """A light VM inside: a tap as its NIC, configured as a guest configures its own."""
    lines = ["tuntap add dev eth0 mode tap", f"link set eth0 address {vm.mac} mtu {GUEST_MTU}"]
    for address in vm_addresses(fabric, vm):
        lines.append(f"address add {address} dev eth0" + (" nodad" if ":" in address else ""))
    lines.append("link set eth0 up")
    lines.append(f"route add default via {GATEWAYS[0]} dev eth0 onlink")
    lines.append(f"route add default via {GATEWAYS[1]} dev eth0")
    return lines


def _sysctls(router: bool) -> None:
    for key, value in _ALL.items():
        for scope in ("all", "default"):
            Path("/proc/sys", key.format(scope)).write_text(value)
    for key, value in _ROUTER.items() if router else ():
        Path("/proc/sys", key).write_text(value)


def _batch(namespace: str | None, lines: Iterable[str]) -> None:
    where = [] if namespace is None else ["-n", namespace]
    text = "".join(line + "\n" for line in lines)
    done = subprocess.run(["ip", *where, "-batch", "-"], input=text, text=True,
                          capture_output=True, check=False)  # fmt: skip
    if done.returncode != 0:
        raise LabError(f"ip in {namespace or 'the host'}: {done.stderr.strip()}",
                       "are you root, with iproute2 and network namespaces?")  # fmt: skip
