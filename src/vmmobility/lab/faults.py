"""Faults of links: cut, lossy, healed.

Frames are dropped by nftables as they arrive at an end, so routes and carriers stay as they are.
Not here: who asks for it (steps.py).  Rests on the netdev family's ingress hook.
"""

from __future__ import annotations

import subprocess

from vmmobility.errors import LabError
from vmmobility.lab.fabric import End, Fabric, Link
from vmmobility.lab.namespaces import Namespaces
from vmmobility.wire.registry import UDP_PORT

_TABLE = "vmmob_lab"


def find_link(fabric: Fabric, text: str, where: str) -> Link:
    """The link of that name, or the one between the two nodes of "a--b" in either order."""
    pair = set(text.split("--"))
    for link in fabric.links:
        if link.name == text or pair == {end.node for end in link.ends}:
            return link
    known = ", ".join(link.name for link in fabric.links)
    raise LabError(f"{where}: no link {text!r}", f"known: {known}")


class Faults:
    """What is wrong with the links of one lab now."""

    def __init__(self, spaces: Namespaces) -> None:
        self._spaces = spaces

    def drop(self, link: Link, per_mille: int, control_only: bool = False) -> None:
        """Drop that share of the frames, each way; 1000 cuts the link.

        control_only: only what the daemons say to each other, as if the rest went another way.
        """
        verdict = "drop" if per_mille >= 1000 else f"numgen random mod 1000 < {per_mille} drop"
        ways = [f"udp {end} {UDP_PORT} " for end in ("sport", "dport")] if control_only else [""]
        for namespace, device in self._ingresses(link):
            _nft(
                namespace,
                f"table netdev {_TABLE} {{\n chain {_chain(device)} {{\n"
                f'  type filter hook ingress device "{device}" priority -500;\n }}\n}}\n'
                f"flush chain netdev {_TABLE} {_chain(device)}\n"
                + "".join(
                    f"add rule netdev {_TABLE} {_chain(device)} {way}{verdict}\n" for way in ways
                ),
            )

    def heal(self, link: Link) -> None:
        """Take the link's fault away; no error if it has none."""
        for namespace, device in self._ingresses(link):
            _nft(
                namespace,
                f"add table netdev {_TABLE}\n"
                f"add chain netdev {_TABLE} {_chain(device)} "
                f'{{ type filter hook ingress device "{device}" priority -500; }}\n'
                f"delete chain netdev {_TABLE} {_chain(device)}\n",
            )

    def carrier(self, link: Link, up: bool) -> None:
        """Take a link down, so that both of its ends know, or up again.  Addresses stay."""
        for end in link.ends[:1]:  # the other end of a wire loses its carrier with it
            namespace = self._spaces.name(end.node)
            keep = f"net/ipv6/conf/{end.interface}/keep_addr_on_down=1"
            for command in (
                ["ip", "netns", "exec", namespace, "sysctl", "-q", "-w", keep],
                [
                    "ip",
                    "-n",
                    namespace,
                    "link",
                    "set",
                    "dev",
                    end.interface,
                    "up" if up else "down",
                ],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    words = done.stderr.strip()
                    raise LabError(f"{end.interface} of {end.node}: {words}", "does it exist?")

    def _ingresses(self, link: Link) -> list[tuple[str, str]]:
        """(namespace, device) of every place where the link's frames arrive."""
        if link.shared:
            segment = self._spaces.name(link.name)
            return [(segment, f"port{number}") for number in range(len(link.ends))]
        return [(self._spaces.name(end.node), end.interface) for end in link.ends]

    def drop_next(self, end: End, port: int, packets: int) -> None:
        """Drop exactly the next `packets` UDP packets from `port` at one end (tests count them)."""
        _nft(
            self._spaces.name(end.node),
            f"table netdev {_TABLE} {{\n chain {_chain(end.interface)} {{\n"
            f'  type filter hook ingress device "{end.interface}" priority -500;\n'
            f"  udp sport {port} limit rate {packets}/day burst {packets} packets counter drop\n"
            " }\n}\n",
        )


def _chain(device: str) -> str:
    return "at_" + device.replace("-", "_").replace(".", "_")


def _nft(namespace: str, text: str) -> None:
    done = subprocess.run(["ip", "netns", "exec", namespace, "nft", "-f", "-"], input=text,
                          text=True, capture_output=True, check=False)  # fmt: skip
    if done.returncode != 0:
        raise LabError(f"nft in {namespace}: {done.stderr.strip()}", "is nftables installed?")
