"""What a NAPT box must have and be: rights, nft, a kernel that translates, time-outs long enough.

Each missing thing is an EnvironmentProblem with its remedy.  Not here: anything of a mapping.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from vmmobility.drivers.linux import napt_conntrack, napt_table, sysctl
from vmmobility.drivers.linux.napt_rules import content
from vmmobility.drivers.linux.netlink import Netlink
from vmmobility.engine.napt_plane import NaptState
from vmmobility.errors import DataPlaneError, EnvironmentProblem

_CONNTRACK = "net/netfilter/nf_conntrack"
_RP_FILTERS = Path("/proc/sys/net/ipv4/conf")

SETTINGS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # While a mapping is handed over a box may see one way of a connection only: to it, the other
    # one's windows stand still.
    f"{_CONNTRACK}_tcp_be_liberal": "1",
    # What was begun by another box is taken up in its middle when the public route has turned.
    f"{_CONNTRACK}_tcp_loose": "1",
}

LEAST_TIMEOUTS_S = {
    # RFC 4787, REQ-5: "A NAT UDP mapping timer MUST NOT expire in less than two minutes"; 5c:
    # "a value of five minutes or more is RECOMMENDED".
    f"{_CONNTRACK}_udp_timeout": 300,
    f"{_CONNTRACK}_udp_timeout_stream": 300,
    # RFC 5382, REQ-5: "established connection idle-timeout" not less than 2 hours 4 minutes,
    # "transitory connection idle-timeout" not less than 4 minutes.
    f"{_CONNTRACK}_tcp_timeout_established": 7440,
    f"{_CONNTRACK}_tcp_timeout_syn_sent": 240,
    f"{_CONNTRACK}_tcp_timeout_syn_recv": 240,
    f"{_CONNTRACK}_tcp_timeout_fin_wait": 240,
    f"{_CONNTRACK}_tcp_timeout_close_wait": 240,
    f"{_CONNTRACK}_tcp_timeout_last_ack": 240,
    f"{_CONNTRACK}_tcp_timeout_time_wait": 240,
    # RFC 5508, REQ-1: "ICMP Query session timer MUST NOT expire in less than 60 seconds".
    f"{_CONNTRACK}_icmp_timeout": 60,
}


_SAMPLE = NaptState(pool=(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")))
"""A state that needs every kind of rule, tried in an empty namespace."""


def check_programs() -> None:
    """Raise EnvironmentProblem unless this process may and can change the kernel."""
    if os.geteuid() != 0:
        raise EnvironmentProblem("the NAPT box's data plane needs root", "run it as root")
    for program, package in (("nft", "nftables"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            raise EnvironmentProblem(
                f"the program {program} is missing", f"install the package {package}"
            )


async def check_kernel(netlink: Netlink) -> None:
    """Raise EnvironmentProblem unless the kernel can translate and shows its flows."""
    try:
        await napt_table.picture(content(_SAMPLE))
    except (DataPlaneError, OSError) as error:
        raise EnvironmentProblem(
            f"this kernel cannot translate, or nft may not try it: {error}",
            "it needs nftables with NAT, ct and hash expressions (modules nft_chain_nat, nft_nat, "
            "nft_ct, nft_hash) and the right to make a network namespace (CAP_SYS_ADMIN)",
        ) from error
    try:
        napt_conntrack.failures(netlink)
    except DataPlaneError as error:
        raise EnvironmentProblem(
            f"this kernel does not show its flows: {error}",
            "it needs CONFIG_NF_CT_NETLINK (module nf_conntrack_netlink)",
        ) from error


def wanted_settings() -> dict[str, str]:
    """Forwarding, time-outs that the RFCs ask for (longer ones stay), and no strict reverse path:
    an address whose mapping is kept elsewhere is spoken to from where no route leads back to.
    """
    values = dict(SETTINGS)
    for key, least in LEAST_TIMEOUTS_S.items():
        current = sysctl.read(key)
        if current is not None and current.isdecimal() and int(current) < least:
            values[key] = str(least)
    if any(_strict(folder.name) for folder in _interfaces()):
        values["net/ipv4/conf/all/rp_filter"] = "2"
    return values


def _interfaces() -> list[Path]:
    return list(_RP_FILTERS.iterdir()) if _RP_FILTERS.is_dir() else []


def _strict(name: str) -> bool:
    everywhere = sysctl.read("net/ipv4/conf/all/rp_filter")
    return everywhere in ("0", "1") and (
        sysctl.read(f"net/ipv4/conf/{name}/rp_filter") == "1" or everywhere == "1"
    )


def ensure_settings() -> None:
    """Make the sysctls so.  Raises EnvironmentProblem where one may not be set."""
    sysctl.ensure(wanted_settings())


def faults() -> Iterator[tuple[str, str]]:
    """What differs of the settings: (item, what is wrong) in words."""
    for key, value, current in sysctl.differing(wanted_settings()):
        yield f"sysctl {key.replace('/', '.')}", f"is {current}; it should be {value}"


def flow_limit() -> int:
    """The size of the kernel's flow table; 0 if unknown."""
    return int(sysctl.read(f"{_CONNTRACK}_max") or 0)
