"""What heartbeats cost a manager: a real daemon, and so many real NVE engines in another process.

    python tools/measure_heartbeats.py [--nves 1000] [--interval 1.0] [--seconds 20] [--servers 0]
                                         [--json]

Everything is on 127.0.0.0/8 of this machine; keys, configuration and journal are in a folder that
goes with the run.  Printed: the manager's CPU time a second and a heartbeat, its memory, how many
NVEs it holds for alive, and how long it had not heard from the latest of them: much more than the
interval says that the machine did not keep up.  --servers: each NVE tells of so many servers.
It judges nothing: a machine's figures are its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from vmmobility.daemon.endpoint import UdpEndpoint  # noqa: E402
from vmmobility.daemon.keys import Node, create, load_keys  # noqa: E402
from vmmobility.engine.binding_update_list import make_nve  # noqa: E402
from vmmobility.engine.capacity import HostCapacity, Resources, ServerRoom  # noqa: E402
from vmmobility.engine.channel import Peer  # noqa: E402
from vmmobility.engine.nve import NveEngine, NveSettings  # noqa: E402
from vmmobility.engine.outputs import Endpoint, MeasureHost, Persist, Send  # noqa: E402
from vmmobility.errors import ApiError  # noqa: E402
from vmmobility.lab.api_client import request  # noqa: E402
from vmmobility.lab.daemons import to_toml  # noqa: E402
from vmmobility.wire.registry import UDP_PORT, Role  # noqa: E402

MANAGER = IPv4Address("127.0.0.1")
HOST = HostCapacity(Resources(16, 8192, 1000), Resources(12, 4096, 900))


def address_of(index: int) -> IPv4Address:
    return IPv4Address("127.1.0.0") + index + 1


class Edge:
    """One NVE: its engine, and a socket of its own.  Nothing of it is durable."""

    def __init__(self, index: int, secret: bytes, interval_s: float, servers: int) -> None:
        name, at = f"nve-{index}", address_of(index)
        peer = Peer("manager", Role.MANAGER, (Endpoint(MANAGER, UDP_PORT),), {1: secret}, 1)
        names = tuple(f"server-{index}-{number}" for number in range(servers))
        self._rooms = tuple(ServerRoom(server, True, 64, HOST) for server in names)
        settings = NveSettings(make_nve(name, (at,)), heartbeat_s=interval_s, servers=names)
        self._engine = NveEngine(settings, [peer], {}, (1 << 33) + index, random.Random(index))
        self._endpoint = UdpEndpoint([at], UDP_PORT)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._endpoint.open(self._received)
        self._engine.started({}, self._loop.time())
        self._cycle()

    def close(self) -> None:
        self._endpoint.close()

    def _received(self, batch: list[tuple[bytes, Endpoint, Any]]) -> None:
        for data, source, local in batch:
            self._engine.datagram_received(data, source, local, self._loop.time())
        self._cycle()

    def _cycle(self) -> None:
        while outputs := self._engine.flush():
            for output in outputs:
                if isinstance(output, Send):
                    self._endpoint.send(output)
                elif isinstance(output, Persist):
                    self._engine.persisted(output.number)
                elif isinstance(output, MeasureHost):
                    self._engine.host_measured(HOST, self._loop.time(), self._rooms)
        if self._timer is not None:
            self._timer.cancel()
        due = self._engine.next_timer()
        self._timer = None if due is None else self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._engine.timer(self._loop.time())
        self._cycle()


async def play(keys: Path, nves: int, interval_s: float, servers: int) -> None:
    """So many NVEs, until this process is ended."""
    secrets = {}
    for name, pair in load_keys(keys, "manager").items():
        secrets[name] = pair.secrets[pair.signing]
    edges = [Edge(index, secrets[f"nve-{index}"], interval_s, servers) for index in range(nves)]
    for edge in edges:
        edge.start()
        await asyncio.sleep(interval_s / nves)  # spread, as hosts are
    await asyncio.Event().wait()


def cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measured(nves: int, interval_s: float, seconds: float, servers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="beats") as folder:
        home = Path(folder)
        keys = home / "keys"
        manager_node, now = Node("manager", Role.MANAGER), datetime.now(UTC)
        for index in range(nves):
            create(keys, manager_node, Node(f"nve-{index}", Role.NVE), now)
        peers = [
            {"id": f"nve-{i}", "role": "nve", "addresses": [str(address_of(i))]}
            for i in range(nves)
        ]
        node = {
            "id": "manager",
            "state_dir": str(home / "state"),
            "addresses": [str(MANAGER)],
            "api_socket": str(home / "manager.sock"),
            "keys_dir": str(keys),
            "log_file": str(home / "log.json"),
        }
        config = home / "manager.toml"
        config.write_text(to_toml({"node": node, "peer": peers}))
        words = [sys.executable, "-m", "vmmobility", "manager", "run", "--config", str(config)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        manager = subprocess.Popen(words, env=environment)
        own = [sys.executable, __file__, "--play", str(keys)]
        size = ["--nves", str(nves), "--interval", str(interval_s), "--servers", str(servers)]
        player = subprocess.Popen([*own, *size])
        try:
            found = _figures(home / "manager.sock", manager.pid, nves, interval_s, seconds)
            return {"servers": servers, **found}
        finally:
            for process in (player, manager):
                process.terminate()
                process.wait()


def _alive(socket_path: Path) -> tuple[int, float]:
    """How many are, and the longest time since one was heard."""
    try:
        rows: Any = request(socket_path, "GET", "/v1/nves")
    except ApiError:
        return -1, 0.0
    longest = max((row["silent_s"] or 0.0 for row in rows), default=0.0)
    return sum(row["liveness"] == "alive" for row in rows), longest


def _figures(
    socket_path: Path, manager: int, nves: int, interval_s: float, seconds: float
) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while (alive := _alive(socket_path)[0]) < nves:
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {alive} of {nves} NVEs are alive")
        time.sleep(1.0)
    time.sleep(2 * interval_s)
    before, since = cpu_s(manager), time.monotonic()
    time.sleep(seconds)
    used, took = cpu_s(manager) - before, time.monotonic() - since
    beats = nves / interval_s
    alive, longest = _alive(socket_path)
    return {
        "nves": nves,
        "interval_s": interval_s,
        "seconds": round(took, 1),
        "alive": alive,
        "longest_silence_s": round(longest, 2),
        "cpu_percent": round(100 * used / took, 2),
        "cpu_us_a_heartbeat": round(1e6 * used / took / beats, 1),
        "manager_rss_mib": round(rss_mib(manager), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--nves", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--servers", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--play", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.play is not None:
        asyncio.run(play(given.play, given.nves, given.interval, given.servers))
        return
    found = measured(given.nves, given.interval, given.seconds, given.servers)
    if given.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for name, value in found.items():
        sys.stdout.write(f"{name:<20} {value}\n")


if __name__ == "__main__":
    main()
