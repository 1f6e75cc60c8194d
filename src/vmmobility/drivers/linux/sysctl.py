"""Kernel settings under /proc/sys: read, and written only where they differ.

Not here: which ones the driver wants (environment.py, ports.py).  /proc/sys/net shows the
network namespace of the process that opens it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from vmmobility.errors import EnvironmentProblem

_ROOT = Path("/proc/sys")
_NO_LINK_LOCAL = "1"
"""addr_gen_mode `none`: no link-local address but the gateway's own."""


def read(key: str) -> str | None:
    """The value of a setting such as `net/ipv4/ip_forward`, or None where it does not exist."""
    try:
        return (_ROOT / key).read_text().strip()
    except OSError:
        return None


def exists(key: str) -> bool:
    """Whether this kernel has such a setting, or folder of settings."""
    return (_ROOT / key).exists()


def write(key: str, value: str) -> None:
    """Raises OSError."""
    (_ROOT / key).write_text(value)


def differing(values: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(key, wanted, present) of each setting that differs; not those that do not exist here."""
    for key, value in values.items():
        current = read(key)
        if current is not None and current != value:
            yield key, value, current


def ensure(values: Mapping[str, str]) -> None:
    """Make each setting so.  One that this kernel does not have is left out.

    Raises EnvironmentProblem where the kernel refuses a write.
    """
    for key, value, _ in differing(values):
        try:
            write(key, value)
        except OSError as error:
            raise EnvironmentProblem(
                f"sysctl {key.replace('/', '.')} cannot be set to {value}: {error.strerror}",
                "run as root, with /proc/sys writable",
            ) from error


def for_node(underlays: tuple[str, ...]) -> dict[str, str]:
    """What a node that routes for guests needs; `underlays` are its underlay interfaces."""
    values = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
    for name in ("all", "default", *underlays):
        values[f"net/ipv4/conf/{name}/rp_filter"] = "0"
        values[f"net/ipv4/conf/{name}/send_redirects"] = "0"
        values[f"net/ipv4/conf/{name}/accept_redirects"] = "0"
        values[f"net/ipv6/conf/{name}/accept_redirects"] = "0"
    for name in underlays:
        # A router ignores advertisements unless told 2: keep a default route learnt so far.
        if read(f"net/ipv6/conf/{name}/accept_ra") == "1":
            values[f"net/ipv6/conf/{name}/accept_ra"] = "2"
    return values


def for_tap(name: str) -> dict[str, str]:
    """What a guest's tap needs: answers at once for what is routed elsewhere, learns nothing."""
    v4, v6 = f"net/ipv4/conf/{name}", f"net/ipv6/conf/{name}"
    return {
        f"{v4}/forwarding": "1",
        f"{v4}/proxy_arp": "1",
        f"{v4}/rp_filter": "0",
        f"{v4}/send_redirects": "0",
        f"{v4}/accept_redirects": "0",
        f"{v4}/arp_accept": "0",
        f"net/ipv4/neigh/{name}/proxy_delay": "0",
        f"net/ipv6/neigh/{name}/proxy_delay": "0",
        f"{v6}/disable_ipv6": "0",
        f"{v6}/forwarding": "1",
        f"{v6}/accept_ra": "0",
        f"{v6}/autoconf": "0",
        f"{v6}/accept_redirects": "0",
        f"{v6}/accept_dad": "0",
        f"{v6}/dad_transmits": "0",
        f"{v6}/addr_gen_mode": _NO_LINK_LOCAL,
    }


def for_tun(name: str, mtu6: int) -> dict[str, str]:
    """What the tunnel's TUN needs; `mtu6` is the IPv6 MTU: the tunnel's header is longer there."""
    v4, v6 = f"net/ipv4/conf/{name}", f"net/ipv6/conf/{name}"
    return {
        f"{v4}/forwarding": "1",
        f"{v4}/rp_filter": "0",
        f"{v4}/send_redirects": "0",
        f"{v6}/disable_ipv6": "0",
        f"{v6}/forwarding": "1",
        f"{v6}/accept_ra": "0",
        f"{v6}/addr_gen_mode": _NO_LINK_LOCAL,
        f"{v6}/mtu": str(mtu6),
    }


def for_kernel_tunnel(name: str, version: int) -> dict[str, str]:
    """What a kernel tunnel's device needs, which carries one IP version alone."""
    v4, v6 = f"net/ipv4/conf/{name}", f"net/ipv6/conf/{name}"
    if version == 4:
        return {
            f"{v4}/forwarding": "1",
            f"{v4}/rp_filter": "0",
            f"{v4}/send_redirects": "0",
            f"{v6}/disable_ipv6": "1",
        }
    return {
        f"{v6}/disable_ipv6": "0",
        f"{v6}/forwarding": "1",
        f"{v6}/accept_ra": "0",
        f"{v6}/addr_gen_mode": _NO_LINK_LOCAL,
    }
