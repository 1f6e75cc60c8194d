"""The daemons of a lab: their configuration, keys, processes and APIs.

Started as anyone would start them: `python -m vmmobility nve run --config …` in a namespace.
Not here: what they are asked to do (steps.py).  Rests on namespaces and api_client.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor.accelerator import choose_accelerator
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.errors import ApiError, LabError
from vmmobility.lab import napt_daemons, workdir
from vmmobility.lab.api_client import request
from vmmobility.lab.fabric import MANAGER_TIMERS, NVE_TIMERS, Fabric, Node
from vmmobility.lab.inside import python, python_environment
from vmmobility.lab.namespaces import Namespaces

START_S = 180.0  # one that ends is noticed at once; on an emulated CPU a start takes long
END_S = 3.0
_AGENTS = {"default": "default-router", "border": "border-router"}
_READY_POLL_S = 0.005  # a restart's first answer is measured by it


class Daemons:
    """The manager, the NVEs and the router agents of one lab."""

    def __init__(self, fabric: Fabric, spaces: Namespaces, folder: Path) -> None:
        self.fabric = fabric
        self._spaces = spaces
        self._folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._meant_to_end: set[str] = set()
        self.first_in_path: dict[str, Path] = {}  # a folder of programs that a node finds first
        self.forked_ns: dict[str, int] = {}
        self.answered_ns: dict[str, int] = {}
        self.agents = tuple(node for node in fabric.of_kind("router") if node.role in _AGENTS)
        self.boxes = tuple(Node(box.name, "napt") for box in napt_daemons.boxes_of(fabric))
        self.servers = fabric.of_kind("server")
        self.nodes = fabric.of_kind("manager") + fabric.of_kind("nve") + self.agents + self.boxes
        self.nodes += self.servers

    @property
    def manager(self) -> str:
        """The manager's name."""
        managers = self.fabric.of_kind("manager")
        if not managers:
            raise LabError(f"fabric {self.fabric.name} has no manager", "add a [[manager]]")
        return managers[0].name

    def home(self, node: str) -> Path:
        """That node's folder: whatever a host holds is in it."""
        return self._folder / "nodes" / node

    def state(self, node: str) -> Path:
        """That node's state folder."""
        return self.home(node) / "state"

    def running(self, node: str) -> bool:
        """Whether its daemon's process lives."""
        process = self.processes.get(node)
        return process is not None and process.poll() is None

    def socket(self, node: str) -> Path:
        """Where that node's API listens."""
        return self._folder / "nodes" / node / "api.sock"

    def log(self, node: str) -> Path:
        """Where that node's JSON log goes."""
        return self._folder / "nodes" / node / "log.json"

    def configure(self) -> None:
        """Write every daemon's folder, configuration and keys."""
        self._make_keys()
        for node in self.nodes:
            home = self._folder / "nodes" / node.name
            (home / "keys").mkdir(parents=True, exist_ok=True)
            for key in (self._folder / "keys").glob("*.toml"):
                if node.name in key.stem.split("--"):
                    shutil.copy2(key, home / "keys" / key.name)
            (home / "config.toml").write_text(self._toml(node))

    def _toml(self, node: Node) -> str:
        if node.kind == "manager":
            return self._manager_toml()
        if node.kind == "napt":
            return self._box_toml(node)
        if node.kind == "server":
            return self._server_toml(node)
        return self._nve_toml(node) if node.kind == "nve" else self._router_toml(node)

    def _box_toml(self, node: Node) -> str:
        box = self.fabric.box(node.name)
        table = {
            **self._node_table(node),
            "addresses": napt_daemons.addresses(self.fabric, box),
        }
        return to_toml({"node": table, **napt_daemons.in_boxs_file(self.fabric, box)})

    def _make_keys(self) -> None:
        folder = self._folder / "keys"
        folder.mkdir(exist_ok=True)
        peers = self.fabric.of_kind("nve") + self.agents
        pairs = [(f"{self.manager}:manager", f"{node.name}:{_role(node)}") for node in peers]
        pairs += [(f"{node.nve}:nve", f"{node.name}:server") for node in self.servers]
        for one, other in pairs + napt_daemons.key_pairs(self.fabric):
            command = python("vmmobility", "key", "new", one, other, "--dir", str(folder))
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=python_environment()
            )
            if done.returncode != 0:
                raise LabError(f"vmmob key new: {done.stderr.strip()}", "try it by hand")

    def _node_table(self, node: Node) -> dict[str, Any]:
        home = self._folder / "nodes" / node.name
        return {
            "id": node.name,
            "state_dir": str(self.state_dir(node.name)),
            "api_socket": str(self.socket(node.name)),
            "keys_dir": str(home / "keys"),
            "log_file": str(self.log(node.name)),
        }

    def state_dir(self, node: str) -> Path:
        """Where the node's daemon keeps what it knows, and an NVE its guests."""
        return self._folder / "nodes" / node / "state"

    def _addresses(self, node: str) -> list[str]:
        return [str(a.ip) for a in self.fabric.first_end(node).addresses]

    def _all_addresses(self, node: str) -> list[str]:
        """Those of a router, whichever of its links fail; its first link's first."""
        ends = [end for link in self.fabric.links if (end := link.end(node)) is not None]
        return [str(a.ip) for end in ends for a in end.addresses]

    def _manager_toml(self) -> str:
        node = self.fabric.node(self.manager)
        table = {**self._node_table(node), "addresses": self._addresses(node.name)}
        peers: list[dict[str, Any]] = [
            {"id": nve.name, "role": "nve", "addresses": self._addresses(nve.name), **self._dc(nve)}
            for nve in self.fabric.of_kind("nve")
        ]
        peers += [self._router_peer(router) for router in self.agents]
        timers = {k: v for k, v in self.fabric.timers if k in MANAGER_TIMERS}
        manager = {"gate_policy": self.fabric.gate_policy}
        tables: dict[str, Any] = {"node": table, "manager": manager, "timers": timers}
        told = napt_daemons.in_managers_file(self.fabric) if self.boxes else {"peer": peers}
        return to_toml({**tables, **told})

    def _dc(self, node: Node) -> dict[str, str]:
        dc = self.fabric.dc_of(node.name) if self.agents else ""
        return {"dc": dc} if dc else {}

    def _router_peer(self, router: Node) -> dict[str, Any]:
        """serves: the NVEs whose default router it is."""
        nves = self.fabric.of_kind("nve")
        serves = [nve.name for nve in nves if router in self.fabric.routers_of(nve.name)]
        return {
            "id": router.name,
            "role": _role(router),
            "addresses": self._all_addresses(router.name),
            "serves": serves,
            **self._dc(router),
        }

    def _router_toml(self, node: Node) -> str:
        table = {
            **self._node_table(node),
            "role": _role(node),
            "addresses": self._all_addresses(node.name),
        }
        manager = [{"id": self.manager, "addresses": self._addresses(self.manager)}]
        return to_toml({"node": table, "manager": manager})

    def _nve_toml(self, node: Node) -> str:
        table = {
            **self._node_table(node),
            "locators": self._addresses(node.name),
            "home_prefixes": [str(p) for p in node.home_prefixes],
            "redirect": node.redirect,
            "tunnel": self.fabric.tunnel,
        }
        if self.fabric.dc_prefixes:
            table["dc_prefixes"] = [str(p) for p in self.fabric.dc_prefixes]
        manager = [{"id": self.manager, "addresses": self._addresses(self.manager)}]
        timers = {k: v for k, v in self.fabric.timers if k in NVE_TIMERS}
        hypervisor = self._hypervisor()
        if self.fabric.copy_mib_per_s:
            hypervisor["copy_mib_per_s"] = self.fabric.copy_mib_per_s
        told: dict[str, Any] = {"manager": manager}
        if self.boxes:
            told = napt_daemons.in_nves_file(self.fabric, node.name, self.manager)
        servers = [self._server_table(server) for server in self.servers if server.nve == node.name]
        told |= {"server": servers} if servers else {}
        tables = {"node": table, **told, "timers": timers, "hypervisor": hypervisor}
        return to_toml({**tables, **self._capacity()})

    def _capacity(self) -> dict[str, Any]:
        """What VMs may have of a host, where the fabric limits it."""
        most = self.fabric.host_memory_mib
        return {"capacity": {"memory_mib": most}} if most else {}

    def _access(self, server: Node) -> tuple[str, str]:
        """The addresses of a server and of its NVE on their link."""
        link = next(link for link in self.fabric.links if link.end(server.name) is not None)
        ends = link.end(server.name), link.end(server.nve)
        assert ends[0] is not None
        assert ends[1] is not None
        return str(ends[0].address(4)), str(ends[1].address(4))

    def _server_table(self, server: Node) -> dict[str, Any]:
        address, own = self._access(server)
        return {"name": server.name, "address": address, "own": own}

    def _server_toml(self, node: Node) -> str:
        """The agent's file: it has no API, and no manager."""
        address, nve_address = self._access(node)
        table = self._node_table(node)
        del table["id"], table["api_socket"]
        table |= {"name": node.name, "nve": node.nve, "address": address}
        table["nve_address"] = nve_address
        hypervisor = self._hypervisor()
        return to_toml({"server": table, "hypervisor": hypervisor, **self._capacity()})

    def _hypervisor(self) -> dict[str, Any]:
        return {
            "accelerator": self.accelerator,
            "images": [str(workdir.cache())],
            "netns": any(vm.kind == "netns" for vm in self.fabric.vms),
        }

    @cached_property
    def accelerator(self) -> str:
        """Probed once for all NVEs: a probe burns a CPU for seconds, beside the first moves."""
        if all(vm.kind == "netns" for vm in self.fabric.vms):
            return "tcg"  # no guest will ask
        binary = QemuSettings().binary
        return asyncio.run(choose_accelerator("auto", binary, workdir.cache()))

    def start(self, name: str) -> None:
        """Start one daemon; it is ready when its API answers (wait_ready)."""
        node = next((node for node in self.nodes if node.name == name), None)
        if node is None:
            kind = self.fabric.node(name).kind
            raise LabError(f"{name} is a {kind}: it runs no daemon", "name the manager or an NVE")
        if self.running(name):
            raise LabError(f"{name} runs already", "kill it first, or use `restart`")
        home = self._folder / "nodes" / name
        for folder in ("state", "tmp"):
            (home / folder).mkdir(exist_ok=True)
        environment = {**python_environment(), "TMPDIR": str(home / "tmp")}  # goes with the lab
        if name in self.first_in_path:
            environment["PATH"] = f"{self.first_in_path[name]}:{environment.get('PATH', '')}"
        self.socket(name).unlink(missing_ok=True)
        config = str(home / "config.toml")
        command = python("vmmobility", node.kind, "run", "--config", config,
                         namespace=self._spaces.name(self.place(name)))  # fmt: skip
        with (home / "stderr.txt").open("ab") as stderr:
            self._meant_to_end.discard(name)
            self.forked_ns[name] = time.time_ns()
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                start_new_session=True, env=environment)  # fmt: skip

    def place(self, name: str) -> str:
        """In whose namespace that daemon runs: a box's in its router's."""
        return next((box.at for box in self.fabric.boxes if box.name == name), name)

    def wait_ready(self, name: str, within_s: float = START_S) -> None:
        """Wait until the daemon's API answers."""
        deadline = time.monotonic() + within_s
        last = "not asked"
        while time.monotonic() < deadline:
            process = self.processes.get(name)
            if process is not None and process.poll() is not None:
                last = f"it ended with status {process.returncode}"
                break
            try:
                if any(name == server.name for server in self.servers):
                    self._ask_for_server(name)
                else:
                    request(self.socket(name), "GET", "/v1/status", timeout_s=2)
                self.answered_ns[name] = time.time_ns()
                return
            except ApiError as error:
                last = error.message
            time.sleep(_READY_POLL_S)
        tail = self._tail(name)
        raise LabError(f"{name} did not start: {last}" + (f"\n{tail}" if tail else ""),
                       "see its stderr above")  # fmt: skip

    def _ask_for_server(self, name: str) -> None:
        """An agent has no API: its NVE says whether it answers.  Raises ApiError."""
        nve = self.fabric.node(name).nve
        rows = request(self.socket(nve), "GET", "/v1/status", timeout_s=2)["servers"]
        reason = next((row["reason"] for row in rows if row["server"] == name), "unknown")
        if reason:
            raise ApiError(f"{nve} does not reach it: {reason}")

    def _tail(self, name: str) -> str:
        path = self._folder / "nodes" / name / "stderr.txt"
        return path.read_text(errors="replace")[-1500:].strip() if path.exists() else ""

    def start_all(self) -> None:
        """Start every daemon and wait for all of them; boxes are there before who needs them."""
        for node in self.boxes:
            self.start(node.name)
        for node in self.boxes:
            self.wait_ready(node.name)
        for node in self.nodes:
            if node not in self.boxes:
                self.start(node.name)
        for node in self.nodes:
            self.wait_ready(node.name)

    def public(self, vm: str) -> str:
        """The VM's public IPv4 address; "" in a fabric whose boxes map nothing."""
        private = str(self.fabric.vm(vm).address(4))
        for box in self.boxes:
            for row in self.ask(box.name, "GET", "/v1/mappings"):
                if (row.get("vm"), row["private"]) == (vm, private) and row["public"]:
                    return str(row["public"])
        return ""

    def kill(self, names: Sequence[str], sign: signal.Signals) -> None:
        """Send a signal to these daemons alone (guests live on), then wait for their ends."""
        self.send_signal(names, sign)
        self.await_ends(names, sign)

    def send_signal(self, names: Sequence[str], sign: signal.Signals) -> None:
        """Send it to all of them, or to none if one does not run."""
        for name in names:
            if not self.running(name):
                raise LabError(f"{name} does not run", "start it first")
        self.let_end(names)
        for name in names:
            os.kill(self.processes[name].pid, sign)

    def let_end(self, names: Sequence[str]) -> None:
        """Their ends are meant, from now until their next start."""
        self._meant_to_end.update(names)

    def fallen(self) -> str:
        """Which daemon has ended by itself, and its last words; "" if none has."""
        for name, process in self.processes.items():
            if process.poll() is not None and name not in self._meant_to_end:
                return (
                    f"{name} has ended by itself, status {process.returncode}: {self._tail(name)}"
                )
        return ""

    def await_ends(self, names: Sequence[str], sign: signal.Signals) -> None:
        """Wait until they have ended, if the signal is one that ends."""
        if sign not in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            return
        for name in names:
            try:
                self.processes[name].wait(10)
            except subprocess.TimeoutExpired as error:
                raise LabError(f"{name} does not end on {sign.name}", "see its log") from error

    def end_all(self) -> None:
        """End every daemon that still runs, with a little patience; their guests live on."""
        living = [process for process in self.processes.values() if process.poll() is None]
        for process in living:
            process.terminate()
        deadline = time.monotonic() + END_S
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def ask(self, node: str, method: str, target: str, body: Any = None,
            timeout_s: float = 30.0) -> Any:  # fmt: skip
        """One request to that node's API."""
        return request(self.socket(node), method, target, body, timeout_s)


def _role(node: Node) -> str:
    """The role that is bound to its key."""
    return _AGENTS[node.role] if node.kind == "router" else node.kind


def to_toml(tables: dict[str, Any]) -> str:
    """TOML of tables and arrays of tables that hold strings, numbers and arrays of strings."""
    lines = []
    for name, value in tables.items():
        for table in value if isinstance(value, list) else [value]:
            lines.append(f"[[{name}]]" if isinstance(value, list) else f"[{name}]")
            lines += [f"{key} = {json.dumps(item)}" for key, item in table.items()]
            lines.append("")
    return "\n".join(lines)
