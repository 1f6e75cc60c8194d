"""One host in a namespace, where real daemons are started: most of them in vain.

Not here: whole fabrics (live_fabric.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contract.namespaces import Namespace, wait_for
from vmmobility.errors import ApiError
from vmmobility.lab.api_client import request
from vmmobility.lab.daemons import to_toml
from vmmobility.lab.inside import python, python_environment

ADDRESSES = {"manager": "10.9.0.1", "nve-a": "10.9.0.2"}
PATIENCE_S = 15.0


@dataclass
class Ended:
    """How a daemon, or another command, ended."""

    code: int
    out: str
    err: str

    def refused(self) -> tuple[str, str]:
        """What its `error:` and its `remedy:` line say; fails if it said anything else."""
        lines = self.err.splitlines()
        assert self.code == 1, (self.code, self.err)
        assert [line.partition(" ")[0] for line in lines] == ["error:", "remedy:"], self.err
        return lines[0].removeprefix("error: "), lines[1].removeprefix("remedy: ")


class Host:
    """A namespace with the addresses of a manager and an NVE, and a folder for their files."""

    def __init__(self) -> None:
        self.space = Namespace("host")
        for address in ADDRESSES.values():
            self.space.ip("addr", "add", f"{address}/32", "dev", "lo")
        self._folder = tempfile.TemporaryDirectory(prefix="vmd")
        self.folder = Path(self._folder.name)
        self._living: list[subprocess.Popen[str]] = []
        self.make_keys(self.folder / "keys")

    def make_keys(self, folder: Path, nve_role: str = "nve") -> None:
        made = self.vmmob("key", "new", "manager:manager", f"nve-a:{nve_role}", "--dir", folder)
        assert made.code == 0, made.err

    def socket(self, node: str) -> Path:
        return self.folder / f"{node}.sock"

    def configure(self, node: str, **changes: Any) -> Path:
        """The node's configuration with these keys of [node] changed."""
        home = self.folder / node
        home.mkdir(exist_ok=True)
        table: dict[str, Any] = {
            "id": node,
            "state_dir": str(home / "state"),
            "api_socket": str(self.socket(node)),
            "keys_dir": str(self.folder / "keys"),
            "log_file": str(home / "log.json"),
        }
        if node == "manager":
            peer: dict[str, Any] = {
                "id": "nve-a",
                "role": "nve",
                "addresses": [ADDRESSES["nve-a"]],
            }
            table = {**table, "addresses": [ADDRESSES["manager"]], **changes}
            text = to_toml({"node": table, "peer": [peer]})
        else:
            peer = {"id": "manager", "addresses": [ADDRESSES["manager"]]}
            table = {**table, "locators": [ADDRESSES["nve-a"]], "home_prefixes": [], **changes}
            light = {"netns": True}
            text = to_toml({"node": table, "manager": [peer], "hypervisor": light})
        path = home / "config.toml"
        path.write_text(text)
        return path

    def vmmob(self, *words: object, before: tuple[str, ...] = ()) -> Ended:
        """Run a command to its end, inside; `before`: a program that starts it."""
        command = [*before, *python("vmmobility", *map(str, words))]
        done = subprocess.run(
            ["ip", "netns", "exec", self.space.name, *command],
            capture_output=True, text=True, check=False, timeout=PATIENCE_S,
            env=python_environment(),
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    def run(self, node: str, config: Path, before: tuple[str, ...] = ()) -> Ended:
        """Run a daemon that is expected to end by itself."""
        return self.vmmob(role(node), "run", "--config", config, before=before)

    def start(self, node: str, config: Path, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start a daemon that is expected to live, and wait until it answers."""
        command = python("vmmobility", role(node), "run", "--config", str(config))
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.space.name, *before, *command],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env=python_environment(),
        )  # fmt: skip
        self._living.append(process)

        def answers() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read()
            try:
                request(self.socket(node), "GET", "/v1/status")
            except ApiError:
                return False
            return True

        wait_for(answers, f"{node} answers", PATIENCE_S)
        return process

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """SIGTERM, and how it ended."""
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_S)
        self._living.remove(process)
        return Ended(process.returncode, "", err)

    def end_all(self) -> None:
        """Whatever still lives, as a test left it."""
        for process in self._living:
            process.kill()
            process.communicate()
        self._living.clear()

    def events(self, node: str) -> list[dict[str, Any]]:
        path = self.folder / node / "log.json"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def close(self) -> None:
        self.end_all()
        self.space.close()
        self._folder.cleanup()

    def flush(self) -> None:
        """Remove what an NVE has left here, if one ran at all."""
        if "vmmob-" in self.space.ip("link"):
            flushed = self.vmmob("nve", "flush", "--config", self.configure("nve-a"))
            assert flushed.code == 0, flushed.err

    def hand_over(self, user: int) -> None:
        """Let that user own all files (a daemon without root)."""
        for path in [self.folder, *self.folder.rglob("*")]:
            os.chown(path, user, user)


def role(node: str) -> str:
    return "manager" if node == "manager" else "nve"
