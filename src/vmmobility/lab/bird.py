"""BIRD in a lab: each border router that runs it has its own, in its namespace.

Children of the lab, ended by pid; all files are in the lab's folder.  Not here: what they are told
(frr_plans.py: the same plan as FRR's), whether they have converged (convergence.py).  Rests on
drivers/bird.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from vmmobility.drivers.bird.check import BIRD, check
from vmmobility.drivers.bird.render import render
from vmmobility.errors import EnvironmentProblem, LabError
from vmmobility.lab.fabric_values import Fabric
from vmmobility.lab.frr import listens
from vmmobility.lab.frr_plans import router_plans
from vmmobility.lab.namespaces import Namespaces

BIRDC = "birdc"
SOCKET = "bird.ctl"
_START_S = 20.0
_POLL_S = 0.02


class Bird:
    """The BIRDs of one lab; of none, in a fabric without."""

    def __init__(self, fabric: Fabric, spaces: Namespaces, folder: Path) -> None:
        self.plans = router_plans(fabric, "bird")
        self._spaces = spaces
        self._folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def home(self, router: str) -> Path:
        """That router's folder: configuration, socket, log."""
        return self._folder / router

    def start(self) -> None:
        """All of them, configured and listening on return; not yet converged."""
        if self.plans and shutil.which(BIRD) is None:
            raise EnvironmentProblem("a router of this fabric runs BIRD, which is not installed",
                                     "apt install bird2")  # fmt: skip
        for router, plan in self.plans.items():
            home = self.home(router)
            home.mkdir(parents=True)
            (home / "bird.conf").write_text(render(plan))
            self._launch(router)
        deadline = time.monotonic() + _START_S
        for router, process in self.processes.items():
            while not listens(self.home(router), SOCKET):
                if process.poll() is not None or time.monotonic() > deadline:
                    words = (self.home(router) / "bird.log").read_text(errors="replace").strip()
                    raise LabError(f"bird of {router} has not opened {SOCKET}: {words[-500:]}",
                                   f"see {self.home(router)}")  # fmt: skip
                time.sleep(_POLL_S)

    def _launch(self, router: str) -> None:
        home = self.home(router)
        # The socket's path is relative: an absolute one may be longer than a socket's may be.
        command = ["ip", "netns", "exec", self._spaces.name(router), BIRD, "-f",
                   "-c", str(home / "bird.conf"), "-s", SOCKET, "-P", "bird.pid"]  # fmt: skip
        with (home / "bird.log").open("ab") as log:
            self.processes[router] = subprocess.Popen(
                command, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)  # fmt: skip

    def check(self) -> None:
        """Ask BIRD whether it takes every router's configuration."""
        for router, plan in self.plans.items():
            check(render(plan), f"{router}'s bird.conf")

    def birdc(self, router: str, command: str) -> str:
        """What BIRD's shell says at that router."""
        done = subprocess.run([BIRDC, "-r", "-s", SOCKET, *command.split()], cwd=self.home(router),
                              capture_output=True, text=True, check=False,
                              timeout=_START_S)  # fmt: skip
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()
            raise LabError(f"{router}: birdc {command}: {said}", "does its BIRD run?")
        return done.stdout

    def sessions(self, router: str) -> dict[str, str]:
        """BGP neighbour -> state, as that router sees it."""
        found = {}
        address = "unknown"
        for line in self.birdc(router, "show protocols all").splitlines():
            key, _, value = line.strip().partition(":")
            if key == "BGP state":
                state = value.strip()
            elif key == "Neighbor address":
                address = value.strip()
                found[address] = state
        return found

    def stop(self) -> None:
        """End them all at once: their namespaces go, so nothing need be withdrawn first."""
        for process in self.processes.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        self.processes.clear()
