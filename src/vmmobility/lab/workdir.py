"""The lab's folders: one a running lab, gone when it is; who owns it; labs that were abandoned.

    BASE/ID/lab.json    name, fabric, owner   BASE/ID/nodes/NODE/…   BASE/ID/keys   BASE/ID/probes

BASE is `vmmobility-lab` under XDG_RUNTIME_DIR, or under /run.  ID is `vml` and four hex digits,
also the prefix of the lab's namespaces.  Not here: tear-down (teardown.py).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from vmmobility.lab.inside import NETNS


def base() -> Path:
    """Where all labs live."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/run") / "vmmobility-lab"


def cache() -> Path:
    """What is kept between labs: guest images, what this machine can do."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "vmmobility" / "guest"


@dataclass(frozen=True, slots=True)
class LabInfo:
    """What lab.json holds.

    owner: 0 if left running on purpose (`lab up`, `--keep`)
    namespaces: name -> inode            host: interfaces of the host's own when it was made
    """

    lab_id: str
    name: str
    fabric: str
    owner: int
    owner_started: int
    namespaces: dict[str, int]
    host: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return base() / self.lab_id

    def save(self) -> None:
        """Write lab.json, as a whole or not at all."""
        temporary = self.folder / "lab.json.new"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(self.folder / "lab.json")


def create(name: str, fabric: str, owned: bool) -> LabInfo:
    """A new lab's folder, owned by this process or by nobody."""
    owner = os.getpid() if owned else 0
    while True:
        lab_id = "vml" + secrets.token_hex(2)
        taken = NETNS.is_dir() and any(p.name.startswith(lab_id + "-") for p in NETNS.iterdir())
        if not taken and not (base() / lab_id).exists():
            break
    there = tuple(host_interfaces())
    info = LabInfo(lab_id, name, fabric, owner, started(owner) or 0, {}, there)
    (info.folder / "nodes").mkdir(parents=True, mode=0o700)
    info.save()
    return info


def host_interfaces() -> list[str]:
    """The interfaces of the namespace in which this process is."""
    return [name for _, name in socket.if_nameindex()]


def all_labs() -> list[LabInfo]:
    """Every lab whose folder exists."""
    found = []
    for path in sorted(base().glob("vml*/lab.json")):
        try:
            found.append(LabInfo(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return found


def abandoned(info: LabInfo) -> bool:
    """Whether its owner died without tearing it down."""
    return info.owner != 0 and started(info.owner) != info.owner_started


def started(pid: int) -> int | None:
    """A process's start time in clock ticks since boot (its pid may be used again), or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
