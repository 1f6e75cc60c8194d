"""The faults of the matrix: how each strikes, and how it is mended.

Not here: when (fault_holds.py, fault_cells.py), what must come of it (fault_table.py).  Rests on
hosts.py, nftables and tmpfs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from vmmobility.errors import LabError
from vmmobility.lab.fault_eyes import EYES, LIMIT, Eyes
from vmmobility.lab.fault_holds import Roles, drop, undrop
from vmmobility.lab.laboratory import Laboratory

_TABLE = "vmmob_cut"
_ROOM_MIB = 288  # where an NVE's images lie: the VM's, and one that was handed over
_STRANGER = b"somebody else's data\n" * 4096
_TOO_LITTLE_KIB = 300_000  # QEMU starts with some 900 MiB of address space


class Strikes:
    """Faults of one lab.  Each strikes in a cell's roles and is mended there."""

    def __init__(self, lab: Laboratory, eyes: Eyes) -> None:
        self._lab = lab
        self._eyes = eyes
        nodes = [node.name for node in lab.fabric.of_kind("nve")]
        self.images = {node: lab.daemons.state_dir(node) / "guests" / "disks" for node in nodes}

    def make_room(self) -> None:
        """Before the daemons start: each NVE's images on a file system of their own."""
        for folder in self.images.values():
            folder.mkdir(parents=True, exist_ok=True)
            words = ["mount", "-t", "tmpfs", "-o", f"size={_ROOM_MIB}m", "vmmob-lab", str(folder)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise LabError(f"mount: {done.stderr.strip()}", "the lab needs tmpfs and root")

    def strike(self, fault: str, roles: Roles, before: bool) -> str:
        """Now.  What was done, in words.  before: no QEMU is at the destination yet."""
        lab, there = self._lab, roles.destination
        strikes: dict[str, Callable[[], str | None]] = {
            "source-killed": lambda: lab.hosts.power_off(roles.source),
            "destination-killed": lambda: lab.hosts.power_off(there),
            "source-daemon-killed": lambda: self._kill(roles.source),
            "guest-killed": lambda: self._kill_guest(roles.source),
            "destination-daemon-killed": lambda: self._kill(there),
            "manager-killed": lambda: self._kill(roles.manager),
            "link-cut": lambda: self._cut(roles.source, there),
            "manager-link-cut": lambda: self._cut(roles.manager, there),
            "source-link-cut": lambda: self._cut(roles.manager, roles.source),
            "disk-full": lambda: self._fill(there),
            "wrong-image": lambda: self._leave_image(there),
            "out-of-memory": lambda: self._refuse(there) if before else self._exhaust(there),
        }
        return strikes[fault]() or ""

    def mend(self, fault: str, roles: Roles) -> None:
        """Whoever was killed is started, whatever was cut is whole, there is room again."""
        lab, there = self._lab, roles.destination
        match fault:
            case "source-killed" | "destination-killed":
                node = roles.source if fault == "source-killed" else there
                lab.hosts.power_on(node)
                self._start(node)
            case "source-daemon-killed":
                self._start(roles.source)
            case "destination-daemon-killed":
                self._start(there)
            case "manager-killed":
                self._start(roles.manager)
            case "link-cut" | "manager-link-cut" | "source-link-cut":
                for node in (roles.source, there, roles.manager):
                    undrop(lab, node, _TABLE)
            case "disk-full":
                (self.images[there] / "filler").unlink(missing_ok=True)
            case "out-of-memory":
                (lab.daemons.home(there) / EYES / LIMIT).unlink(missing_ok=True)

    def untouched(self, node: str) -> str:
        """What is wrong with the stranger's image, "" if nothing; it is removed."""
        image = self._image(node)
        try:
            problem = "" if image.read_bytes() == _STRANGER else "somebody else's image has changed"
        except FileNotFoundError:
            return "somebody else's image is gone"
        image.unlink()
        return problem

    # -- inside ----------------------------------------------------------------------------------

    def _start(self, node: str) -> None:
        if not self._lab.daemons.running(node):
            self._lab.daemons.start(node)
            self._lab.daemons.wait_ready(node)

    def _kill(self, node: str) -> None:
        self._lab.daemons.kill([node], signal.SIGKILL)

    def _cut(self, one: str, other: str) -> None:
        drop(self._lab, one, other, _TABLE)
        drop(self._lab, other, one, _TABLE)

    def _fill(self, node: str) -> None:
        """To the last octet."""
        octets = bytes(1 << 20)
        with (self.images[node] / "filler").open("wb", buffering=0) as filler:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while filler.write(octets[:size]) == size:
                        pass

    def _image(self, node: str) -> Path:
        return self.images[node] / f"{self._lab.fabric.vms[0].name}.img"

    def _leave_image(self, node: str) -> None:
        image = self._image(node)
        image.with_name(image.name + ".moved").unlink(missing_ok=True)
        image.write_bytes(_STRANGER)

    def _refuse(self, node: str) -> str:
        (self._lab.daemons.home(node) / EYES / LIMIT).write_text(str(_TOO_LITTLE_KIB))
        return "QEMU gets too little address space to start"

    def _exhaust(self, node: str) -> str:
        self._kill_guest(node)
        return "SIGKILL to QEMU, as the kernel's OOM killer sends it"

    def _kill_guest(self, node: str) -> None:
        eye = self._eyes.at(node)
        if eye is None:
            raise LabError(f"no QEMU lives at {node}", "it should by now")
        with contextlib.suppress(ProcessLookupError):
            os.kill(eye.pid, signal.SIGKILL)
