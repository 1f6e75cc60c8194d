"""FRR's daemons of a lab: each router has its own, in its namespace, with its own host name.

Children of the lab, ended by pid.  Each sees its router's folder, inside the lab's, in the place
of /var/tmp and /run/frr, so that whatever FRR writes goes with the lab.  Not here: what they are
told (frr_plans.py), whether they have converged (convergence.py).  Rests on drivers/frr.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vmmobility.drivers.frr.check import VTYSH, check
from vmmobility.drivers.frr.plan import daemons
from vmmobility.drivers.frr.render import render
from vmmobility.errors import EnvironmentProblem, LabError
from vmmobility.lab.fabric_values import Fabric
from vmmobility.lab.frr_plans import router_plans
from vmmobility.lab.namespaces import Namespaces

PROGRAMS = Path("/usr/lib/frr")
USER = "frr"
_START_S = 20.0
_POLL_S = 0.02
_KEPT_S = 20
_AT_ONCE = 4  # vtysh takes some 100 ms of a CPU
# $1: host name, $2: the router's folder; then the daemon and its arguments.  Some files FRR writes
# to /run/frr whatever it is told.
_ENTER = """
set -e
echo "$1" >/proc/sys/kernel/hostname
mount --bind "$2" /var/tmp
[ ! -d /run/frr ] || mount --bind "$2/run" /run/frr
shift 2
exec "$@"
"""


class Frr:
    """The routing daemons of one lab; of none, in a fabric with static routes."""

    def __init__(self, fabric: Fabric, spaces: Namespaces, folder: Path) -> None:
        self.plans = router_plans(fabric)
        self._spaces = spaces
        self._folder = folder
        self.processes: dict[tuple[str, str], subprocess.Popen[bytes]] = {}

    def home(self, router: str) -> Path:
        """That router's folder: configuration, sockets (run/), logs."""
        return self._folder / router

    def start(self) -> None:
        """All daemons of all routers, configured on return; not yet converged."""
        if not self.plans:
            return
        if not (PROGRAMS / "zebra").exists() or shutil.which(VTYSH) is None:
            raise EnvironmentProblem("this fabric's routers run FRR, which is not installed",
                                     "apt install frr frr-pythontools")  # fmt: skip
        for router in self.plans:
            self._configure(router)
        self._start({router: ["zebra"] for router in self.plans})
        self._start({router: daemons(plan)[1:] for router, plan in self.plans.items()})
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._load, self.plans))

    def _configure(self, router: str) -> None:
        home = self.home(router)
        (home / "run").mkdir(parents=True)
        (home / "frr.conf").write_text(render(self.plans[router]))
        for name in ("vtysh.conf", "empty.conf"):
            (home / name).touch()
        for path in (home, *home.iterdir()):
            shutil.chown(path, USER, USER)

    def check(self) -> None:
        """Ask FRR whether it takes every router's configuration."""
        for router, plan in self.plans.items():
            check(render(plan), f"{router}'s frr.conf")

    def _start(self, wanted: dict[str, Sequence[str]]) -> None:
        """Start these daemons of these routers; all listen on return."""
        for router, names in wanted.items():
            for daemon in names:
                self._launch(router, daemon)
        for router, names in wanted.items():
            self._await(router, names)

    def _launch(self, router: str, daemon: str) -> None:
        home = self.home(router)
        for name in _sockets(daemon):
            (home / "run" / name).unlink(missing_ok=True)
        run = "/var/tmp/run"
        arguments = ["-f", "/var/tmp/empty.conf", "-i", f"{run}/{daemon}.pid", "-P", "0",
                     "--vty_socket", run, "-z", f"{run}/zserv.api", "--limit-fds", "1024",
                     "--log", f"file:/var/tmp/{daemon}.log", "--log-level", "warnings"]  # fmt: skip
        if daemon == "zebra":  # what it left in the kernel stays until its daemons are back
            arguments += ["-K", str(_KEPT_S)]
        command = ["ip", "netns", "exec", self._spaces.name(router), "unshare", "--uts", "sh", "-c",
                   _ENTER, "sh", router, str(home), str(PROGRAMS / daemon), *arguments]  # fmt: skip
        with (home / f"{daemon}.out").open("ab") as out:
            self.processes[router, daemon] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def _await(self, router: str, names: Sequence[str]) -> None:
        deadline = time.monotonic() + _START_S
        waiting = {(daemon, name) for daemon in names for name in _sockets(daemon)}
        while waiting:
            waiting = {(d, n) for d, n in waiting if not listens(self.home(router) / "run", n)}
            for daemon, name in waiting:
                process = self.processes[router, daemon]
                if process.poll() is not None or time.monotonic() > deadline:
                    words = self._last_words(router, daemon)
                    raise LabError(f"{daemon} of {router} has not opened {name}: {words}",
                                   f"its logs are in {self.home(router)}")  # fmt: skip
            if waiting:
                time.sleep(_POLL_S)

    def _last_words(self, router: str, daemon: str) -> str:
        found = [self.home(router) / f"{daemon}.{end}" for end in ("out", "log")]
        text = "\n".join(path.read_text(errors="replace") for path in found if path.exists())
        return text.strip()[-500:] or "it has said nothing"

    def _load(self, router: str) -> None:
        """Give the router's configuration to its daemons, as FRR's own start script does."""
        said = self.vtysh(router, "-b")
        if wrong := [line for line in said.splitlines() if "%" in line or "rror" in line]:
            raise LabError(f"{router}: FRR refuses its configuration: {wrong[0]}",
                           f"see {self.home(router) / 'frr.conf'}")  # fmt: skip

    def vtysh(self, router: str, *words: str) -> str:
        """What FRR's shell says at that router."""
        done = subprocess.run([VTYSH, "--config_dir", ".", "--vty_socket", "run", *words],
                              cwd=self.home(router), capture_output=True, text=True, check=False,
                              timeout=_START_S)  # fmt: skip
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()
            raise LabError(f"{router}: vtysh {' '.join(words)}: {said}", "do its daemons run?")
        return done.stdout + done.stderr

    def sessions(self, router: str) -> dict[str, str]:
        """BGP neighbour -> state, as that router sees it."""
        summary = json.loads(self.vtysh(router, "-c", "show bgp summary json"))
        peers = {a: p for af in summary.values() for a, p in af.get("peers", {}).items()}
        return {address: str(peer.get("state", "unknown")) for address, peer in peers.items()}

    def kill(self, router: str, names: Iterable[str], sign: signal.Signals) -> None:
        """Signal some of a router's daemons, and wait for their ends."""
        chosen = [self._process(router, name) for name in names]
        for process in chosen:
            process.send_signal(sign)
        for process in chosen:
            process.wait(_START_S)

    def revive(self, router: str) -> list[str]:
        """Start what has ended there; what has been started.  As FRR's own watchdog does it: the
        others too when zebra has ended, since they ask for it only every ten seconds."""
        names = daemons(self.plans[router])
        ended = [name for name in names if self._process(router, name).poll() is not None]
        if "zebra" in ended:
            living = [name for name in names if name not in ended]
            self.kill(router, living, signal.SIGTERM)
            self._start({router: ["zebra"]})
            self._start({router: names[1:]})
            self._load(router)
            return list(names)
        self._start({router: ended})
        if ended:
            self._load(router)
        return ended

    def _process(self, router: str, daemon: str) -> subprocess.Popen[bytes]:
        try:
            return self.processes[router, daemon]
        except KeyError:
            known = ", ".join(daemons(self.plans[router])) if router in self.plans else "none"
            raise LabError(f"{router} runs no {daemon} of FRR", f"it runs: {known}") from None

    def stop(self) -> None:
        """End them all at once: their namespaces go, so nothing need be withdrawn first."""
        for process in self.processes.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        self.processes.clear()


def _sockets(daemon: str) -> tuple[str, ...]:
    """Where a daemon that is ready listens."""
    return ("zebra.vty", "zserv.api") if daemon == "zebra" else (f"{daemon}.vty",)


def listens(folder: Path, name: str) -> bool:
    """Whether somebody listens at that socket.  By way of a descriptor:
    the path itself may be longer than a socket's may be."""
    fd = os.open(folder, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"/proc/self/fd/{fd}/{name}")
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
