"""The probe processes of a lab: start, stop, and what they have recorded so far.

Not here: the probe itself (probe.py), counting (counting.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmmobility.errors import LabError
from vmmobility.lab.counting import TcpRecord, UdpRecord, read_tcp, read_udp
from vmmobility.lab.inside import python, python_environment, udp_ask
from vmmobility.lab.probe import ECHO_PORT
from vmmobility.wire.values import FAMILIES

FAMILY_NAMES = {4: "ipv4", 6: "ipv6"}


@dataclass(frozen=True, slots=True)
class Pair:
    """Who talks to which VM."""

    correspondent: str
    vm: str


class Correspondents:
    """All probes of one run."""

    def __init__(self, folder: Path, every_ms: int) -> None:
        self.pairs: tuple[Pair, ...] = ()
        self._folder, self._every_ms = folder, every_ms
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, pairs: Sequence[Pair], namespace: Mapping[str, str],
        addresses: Mapping[str, Sequence[str]],
    ) -> None:  # fmt: skip
        """One process a correspondent of these pairs; returns once every stream has had an echo.

        Nobody counts before every VM answers everybody: a booting guest loses nothing.  Guests
        that run later are talked to later: with other pairs it can be called again.
        """
        for pair in pairs:
            for address in addresses[pair.vm]:
                udp_ask(namespace[pair.correspondent], address, ECHO_PORT, b"ready?", 60.0)
        self.pairs = (*self.pairs, *pairs)
        for name in dict.fromkeys(pair.correspondent for pair in pairs):
            folder = self._folder / name
            folder.mkdir(parents=True, exist_ok=True)
            targets = [p.vm for p in pairs if p.correspondent == name]
            words = [str(folder), str(self._every_ms)]
            words += [f"{vm}={','.join(addresses[vm])}" for vm in targets]
            command = python("vmmobility.lab.probe", *words, namespace=namespace[name])
            with (folder / "stderr.txt").open("ab") as stderr:
                self._processes.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr,
                                     stderr=stderr, env=python_environment())
                )  # fmt: skip
        self._wait_for_echoes(30.0)

    def _wait_for_echoes(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        missing = "no probe"
        while time.monotonic() < deadline:
            silent = [
                f"{pair.correspondent} to {pair.vm} {FAMILY_NAMES[version]} {kind}"
                for pair in self.pairs
                for version in FAMILIES
                for kind in ("udp", "tcp")
                if not self._heard(pair, version, kind)
            ]
            if not silent:
                return
            missing = ", ".join(silent)
            time.sleep(0.05)
        raise LabError(f"no echo before the scenario: {missing}", "`vmmob lab up` and look around")

    def _heard(self, pair: Pair, version: int, kind: str) -> bool:
        if kind == "udp":
            return bool(self.udp(pair, version).received)
        return bool(self.tcp(pair, version).echoes)

    def stop(self) -> None:
        """Let them end: no more sending, 2 s of listening."""
        for process in self._processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _path(self, pair: Pair, version: int, kind: str) -> Path:
        return self._folder / pair.correspondent / f"{pair.vm}-{FAMILY_NAMES[version]}.{kind}"

    def udp(self, pair: Pair, version: int) -> UdpRecord:
        """What that pair's UDP stream of one family has recorded so far."""
        return read_udp(self._path(pair, version, "udp"))

    def tcp(self, pair: Pair, version: int) -> TcpRecord:
        """What that pair's TCP sessions of one family have felt so far."""
        return read_tcp(self._path(pair, version, "tcp"))
