"""A small fabric with a manager, three NVEs and one light VM, all real: for tests of live daemons.

It is the lab's own Laboratory with short timers.  Not here: scenarios, probes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.contract.namespaces import wait_for
from vmmobility.api.client import ManagerClient, NveClient
from vmmobility.errors import ApiError, LabError
from vmmobility.lab import laboratory, workdir
from vmmobility.lab.daemons import Daemons, to_toml
from vmmobility.lab.fabric import parse_fabric
from vmmobility.lab.inside import inside, python, python_environment, udp_ask

STEP_S = 1.0
LIFETIME_S = 4
VM = "vm1"
ADDRESSES = ("10.1.0.5", "fd01::5")
Tables = dict[str, Any]
FABRIC: Tables = {
    "router": [{"name": "core"}],
    "nve": [
        {"name": "nve-a", "prefixes": ["10.1.0.0/24", "fd01::/64"]},
        {"name": "nve-b", "prefixes": ["10.2.0.0/24", "fd02::/64"]},
        {"name": "nve-c", "prefixes": ["10.3.0.0/24", "fd03::/64"]},
    ],
    "manager": [{"name": "manager"}],
    "correspondent": [{"name": "near"}],
    "link": [{"nodes": ["core", node]} for node in ("nve-a", "nve-b", "nve-c", "manager", "near")],
    "vm": [{"name": VM, "kind": "netns", "home": "nve-a", "addresses": list(ADDRESSES)}],
}


class ShortTimers(Daemons):
    """The lab's daemons, with timers that suit a test."""

    def configure(self) -> None:
        super().configure()
        path = self.home(self.manager) / "config.toml"
        tables = tomllib.loads(path.read_text())
        tables["timers"] = {"step_s": STEP_S, "lifetime_s": LIFETIME_S}
        path.write_text(to_toml(tables))


class LiveFabric:
    """Up at once; close() takes it down and answers what is left behind."""

    def __init__(self, daemons: type[Daemons] = ShortTimers, tables: Tables = FABRIC) -> None:
        fabric = parse_fabric(tables, "tests", "tests")
        info = workdir.create("tests", "tests", owned=True)
        self._lab = laboratory.Laboratory(fabric, info, lambda line: None)
        self.daemons = daemons(fabric, self._lab.spaces, info.folder)
        self._lab.daemons = self.daemons
        try:
            self._lab.up()
        except BaseException:
            self._lab.down()
            raise

    def close(self) -> list[str]:
        return self._lab.down()

    # --- asking ---

    def manager(self) -> ManagerClient:
        return ManagerClient(self.daemons.socket("manager"))

    def nve(self, name: str) -> NveClient:
        return NveClient(self.daemons.socket(name))

    def where(self) -> str:
        """The NVE that serves the VM, as the manager has it; empty if it knows no VM."""
        with self.manager() as client:
            rows = client.vms()
        return str(rows[0]["nve"]) if rows else ""

    def status(self, node: str) -> dict[str, Any]:
        with self.manager() if node == "manager" else self.nve(node) as client:
            return client.status()

    def drops(self, node: str, reason: str) -> int:
        return int(self.status(node)["drops"].get(reason, 0))

    def last_heard_s(self, nve: str) -> float | None:
        with self.manager() as client:
            row = next(row for row in client.nves() if row["nve"] == nve)
        return None if row["last_heard_s"] is None else float(row["last_heard_s"])

    def echoes(self) -> None:
        """The VM answers its correspondent, in each family.  Raises LabError if not."""
        for address in ADDRESSES:
            assert udp_ask(self._lab.spaces.name("near"), address, 7, b"echo", 5.0) == b"echo"

    def silent(self) -> bool:
        try:
            udp_ask(self._lab.spaces.name("near"), ADDRESSES[0], 7, b"echo", 0.3)
        except LabError:
            return True
        return False

    def kernel(self, nve: str) -> str:
        """What the VM's traffic rests on at that NVE: taps and our routes."""
        space = self._lab.spaces.name(nve)
        words = (["-br", "link"], ["route", "show", "proto", "77"])
        families = (["-6", "route", "show", "proto", "77"], ["rule"])
        return "".join(_ip(space, *w) for w in (*words, *families))

    def processes(self, nve: str) -> list[str]:
        """The command lines of what lives on beside that NVE's daemon (relay, VM's card)."""
        pids = _ip("", "netns", "pids", self._lab.spaces.name(nve)).split()
        daemon = self.daemons.processes[nve].pid
        lines = {p: _command(int(p)) for p in pids if int(p) != daemon}
        # The probe of KVM is the daemon's own, and ends with it.
        return sorted(f"{p} {line}" for p, line in lines.items() if "vmmob-probe" not in line)

    def events(self, node: str) -> list[str]:
        return [line for line in self.daemons.log(node).read_text().splitlines() if line]

    # --- doing ---

    def ip(self, nve: str, *words: str) -> str:
        """Run `ip` in that NVE's namespace, as other hands may."""
        return _ip(self._lab.spaces.name(nve), *words)

    def vmmob(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **python_environment(),
            "VMMOB_SOCKET": str(self.daemons.socket("manager")),
        }
        return subprocess.run(
            python("vmmobility", *words), capture_output=True, text=True, check=False,
            timeout=30, env=environment,
        )  # fmt: skip

    def move(self, to: str) -> None:
        """A move that must succeed."""
        moved = self.vmmob("move", VM, to, "--wait")
        assert (moved.returncode, moved.stderr) == (0, ""), moved
        assert self.where() == to

    def kill(self, node: str, sign: signal.Signals) -> int:
        """Send the signal and wait for the daemon's end; its exit code."""
        self.daemons.kill([node], sign)
        code = self.daemons.processes[node].returncode
        assert code is not None
        return code

    def start(self, node: str) -> None:
        self.daemons.start(node)
        self.daemons.wait_ready(node)

    def start_ended(self) -> None:
        """Start every daemon that has ended."""
        for node, process in self.daemons.processes.items():
            if process.poll() is not None:
                self.start(node)

    def hang_up(self, node: str) -> None:
        """SIGHUP, and wait until the daemon has read its keys again."""
        before = self.count(node, '"keys.reloaded"')
        os.kill(self.daemons.processes[node].pid, signal.SIGHUP)
        wait_for(lambda: self.count(node, '"keys.reloaded"') > before, f"{node} reloads its keys")

    def count(self, node: str, text: str) -> int:
        return sum(text in line for line in self.events(node))

    def datagram(self, sender: str, node: str, data: bytes) -> None:
        """Send a datagram from one node's namespace to another's daemon."""
        sock = inside(self._lab.spaces.name(sender), _udp_socket)
        with sock:
            sock.sendto(data, (self.address(node), 8747))

    def address(self, node: str) -> str:
        ends = self._lab.fabric.first_end(node).addresses
        return next(str(a.ip) for a in ends if a.version == 4)

    def eventually(
        self, condition: Callable[[], object], what: str, within_s: float = 10.0
    ) -> None:
        """Wait for a condition; a daemon that does not answer yet is no failure."""

        def holds() -> object:
            try:
                return condition()
            except (ApiError, LabError):
                return False

        wait_for(holds, what, within_s)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return "vmmob-probe, ended"


def _udp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _ip(namespace: str, *words: str) -> str:
    where = ["-n", namespace] if namespace else []
    done = subprocess.run(["ip", *where, *words], capture_output=True, text=True, check=True)
    return done.stdout


AnyFabric = TypeVar("AnyFabric", bound=LiveFabric)


@contextmanager
def left_bare(make: Callable[[], AnyFabric]) -> Iterator[AnyFabric]:
    """The fabric that is made here, and leaves nothing behind."""
    live = make()
    try:
        yield live
    finally:
        left = live.close()
    assert not left, f"left behind: {left}"


def live_fabric(daemons: type[Daemons] = ShortTimers) -> AbstractContextManager[LiveFabric]:
    """A LiveFabric that leaves nothing behind."""
    return left_bare(lambda: LiveFabric(daemons))
