"""Hosts of NVEs as machines: their helper processes, power, and what they keep.

A host is its NVE's namespace, the processes in it that name its folder, and that folder.  Not
here: the daemons (daemons.py), links (faults.py).  Rests on /proc, iproute2 and nftables.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from vmmobility.drivers.linux.ownership import (
    NFT_CIRCUIT_TABLE,
    NFT_GUARD_TABLE,
    NFT_SERVER_TABLE,
    NFT_TABLE,
    ROUTE_PROTOCOL,
    RULE_PRIORITY,
    TAP_PREFIX,
    TUNNEL_DEVICES,
    TUNNELLED_TABLE,
    UNACCEPTED_RULE_PRIORITY,
)
from vmmobility.errors import LabError
from vmmobility.lab.daemons import Daemons
from vmmobility.lab.fabric import Link
from vmmobility.lab.faults import Faults
from vmmobility.lab.inside import inside
from vmmobility.lab.namespaces import Namespaces
from vmmobility.lab.soundness import command_line, processes_in

_END_S = 5.0
_RELAY = "vmmobility.drivers.linux.relay"
_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


class Hosts:
    """What can happen to the machines of one lab."""

    def __init__(self, spaces: Namespaces, daemons: Daemons, faults: Faults) -> None:
        self._spaces = spaces
        self._daemons = daemons
        self._faults = faults

    def processes(self, node: str) -> list[int]:
        """Daemon, helper, guests of that host; not those that only watch its namespace."""
        folder = f"{self._daemons.home(node)}/"
        found = processes_in(self._spaces.name(node))
        return [pid for pid in found if folder in command_line(pid)]

    def relay(self, node: str) -> int | None:
        """The NVE's helper process, if it has one."""
        found = [pid for pid in self.processes(node) if _RELAY in command_line(pid)]
        return found[0] if found else None

    def kill(self, nodes: Sequence[str], sign: signal.Signals, process: str) -> None:
        """A signal to daemons, relays or both, of all these nodes before any is waited for."""
        relays = []
        if process in ("relay", "both"):
            relays = [pid for node in nodes if (pid := self.relay(node)) is not None]
            if process == "relay" and len(relays) < len(nodes):
                raise LabError(f"no relay runs at one of {', '.join(nodes)}", "start its NVE first")
        if process != "relay":  # daemons first: one that lives would start another relay
            self._daemons.send_signal(nodes, sign)
        for pid in relays:
            os.kill(pid, sign)
        if process != "relay":
            self._daemons.await_ends(nodes, sign)
        if sign is signal.SIGKILL:
            _wait_for_ends(relays)

    def power_off(self, node: str) -> None:
        """The host goes dark: links, daemon, helper and guests at once, then the kernel's state."""
        for link in self._links(node):
            self._faults.drop(link, 1000)
        victims = self.processes(node)
        self._daemons.let_end([node])
        for pid in victims:
            _signal(pid, signal.SIGKILL)
        daemon = self._daemons.processes.get(node)
        if daemon is not None:
            daemon.wait(_END_S)
        _wait_for_ends(victims)
        self._forget_kernel_state(node)

    def power_on(self, node: str) -> None:
        """Its links carry again; starting its daemon is another step."""
        for link in self._links(node):
            self._faults.heal(link)

    def lose_state(self, node: str) -> None:
        """Remove all that the NVE has kept: journal, guests' folders, relay's files."""
        if self._daemons.running(node):
            raise LabError(f"{node} runs: its state is in use", "kill it, or power its host off")
        living = [pid for pid in self.processes(node) if "--state-dir" in command_line(pid)]
        if living:
            raise LabError(f"{node}: its relay (process {living[0]}) lives", "power its host off")
        shutil.rmtree(self._daemons.state(node), ignore_errors=True)

    def _links(self, node: str) -> list[Link]:
        return [link for link in self._spaces.fabric.links if link.end(node) is not None]

    def _forget_kernel_state(self, node: str) -> None:
        """What a reboot would have taken: devices, routes, rules, filters and sysctls of ours."""
        space = self._spaces.name(node)
        listed = subprocess.run(["ip", "-n", space, "-br", "link", "show"], capture_output=True,
                                text=True, check=False).stdout  # fmt: skip
        names = [line.split()[0].split("@")[0] for line in listed.splitlines() if line.strip()]
        lines = [f"link del {n}" for n in names if n.startswith(TAP_PREFIX) or n in TUNNEL_DEVICES]
        for family in ("-4", "-6"):
            for table in ("main", str(TUNNELLED_TABLE)):
                _quietly(["ip", "-n", space, family, "route", "flush", "table", table, "proto",
                          str(ROUTE_PROTOCOL)])  # fmt: skip
            for priority in (RULE_PRIORITY, UNACCEPTED_RULE_PRIORITY):
                _quietly(["ip", "-n", space, family, "rule", "del", "priority", str(priority),
                          "protocol", str(ROUTE_PROTOCOL)])  # fmt: skip
        text = "".join(line + "\n" for line in lines)
        subprocess.run(["ip", "-n", space, "-force", "-batch", "-"], input=text, text=True,
                       capture_output=True, check=False)  # fmt: skip
        ours = (NFT_TABLE, NFT_GUARD_TABLE, NFT_CIRCUIT_TABLE, NFT_SERVER_TABLE)
        tables = (("netdev", NFT_TABLE), *(("inet", name) for name in ours))
        for family, table in tables:
            _quietly(["ip", "netns", "exec", space, "nft", "delete", "table", family, table])
        inside(space, _no_forwarding)


def _no_forwarding() -> None:
    for key in _FORWARDING:
        Path("/proc/sys", key).write_text("0")


def _quietly(command: list[str]) -> None:
    """What is not there need not go."""
    subprocess.run(command, capture_output=True, check=False)


def _signal(pid: int, sign: signal.Signals) -> None:
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return


def _wait_for_ends(pids: Sequence[int]) -> None:
    """Until each is gone, or ended and not yet reaped by whoever started it."""
    deadline = time.monotonic() + _END_S
    while living := [pid for pid in pids if command_line(pid)]:
        if time.monotonic() > deadline:
            raise LabError(f"process {living[0]} does not end on SIGKILL", "see its stack")
        time.sleep(0.005)
