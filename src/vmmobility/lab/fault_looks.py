"""What is looked at in a cell: the manager's words, records on disks, what is left over.

Not here: QEMUs (fault_eyes.py), the verdict (fault_judging.py).  Rests on the daemons' APIs, the
kernels of the nodes and their files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor.process import GuestFolder, find
from vmmobility.errors import ApiError, LabError
from vmmobility.lab.assertions import remains
from vmmobility.lab.fabric import Vm
from vmmobility.lab.guest.disk_records import SECTOR, acknowledged, lost, records_in
from vmmobility.lab.guest_disks import image_at
from vmmobility.lab.inside import udp_ask
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.namespaces import existing
from vmmobility.lab.soundness import CONTROL_PORT
from vmmobility.wire.values import VmKey

RECORDS = 24576  # 96 MiB, so that for ten minutes each record takes room that no other took
EVERY_MS = 25
_OLD, _HANDED = ".moved", ".handed"


class Looks:
    """At one lab with one VM."""

    def __init__(self, run: LabRun, vm: Vm, asker: str) -> None:
        self._run = run
        self._lab = run.lab
        self._vm = vm
        self._asker = run.lab.spaces.name(asker)

    # -- the manager -----------------------------------------------------------------------------

    def move(self, move_id: str) -> dict[str, Any]:
        """The move as the manager has it; {} if it does not answer."""
        daemons = self._lab.daemons
        try:
            found = daemons.ask(daemons.manager, "GET", f"/v1/moves/{move_id}", timeout_s=2.0)
        except ApiError:
            return {}
        return found if isinstance(found, dict) else {}

    def ended(self, move_id: str) -> str:
        """How the manager says that the move has ended; "" while it goes on."""
        move = self.move(move_id)
        if move.get("ok") is None:
            return ""
        return f"move {move.get('state')}" + (f": {move['reason']}" if move.get("reason") else "")

    def loss(self, move_id: str) -> str:
        """How it says that the VM may run nowhere; "" if it does not."""
        ended = self.ended(move_id)
        words = [ended] if ended.startswith("move failed") else []
        words += self.alarms()
        if not words:
            words += self.stopped()
        if not words and self.is_removed():
            words.append("the VM is registered no more")
        return "; ".join(words)

    def stopped(self) -> list[str]:
        """Whether the manager says that the guest is stopped, and why it does not run."""
        daemons = self._lab.daemons
        try:
            rows = daemons.ask(daemons.manager, "GET", "/v1/bindings", timeout_s=2.0)
        except ApiError:
            return []
        mine = [row for row in rows if row["vm"] == self._vm.name]
        return [
            f"the VM is stopped: {row['guest_error']}"
            for row in mine
            if row.get("guest") == "stopped" and row.get("guest_error")
        ]

    def is_removed(self) -> bool:
        """Whether the manager answers, and has no binding of the VM."""
        daemons = self._lab.daemons
        try:
            rows = daemons.ask(daemons.manager, "GET", "/v1/bindings", timeout_s=2.0)
        except ApiError:
            return False
        return all(row["vm"] != self._vm.name for row in rows)

    def alarms(self) -> list[str]:
        """Which alarms about the VM are up."""
        daemons = self._lab.daemons
        try:
            rows = daemons.ask(daemons.manager, "GET", "/v1/alarms", timeout_s=2.0)
        except ApiError:
            return []
        return [f"alarm {row['alarm']}" for row in rows if row.get("vm") == self._vm.name]

    def drift(self) -> list[str]:
        """What `vmmob check` finds."""
        daemons = self._lab.daemons
        try:
            found = daemons.ask(daemons.manager, "POST", "/v1/check?timeout=5", timeout_s=15.0)
        except ApiError as error:
            return [f"check: {error.message}"]
        rows = [f"{row['nve']}: {row['what']}: {row['found']}" for row in found["drift"]]
        return [*rows, *(f"{node} does not answer" for node in found.get("unanswered") or ())]

    # -- the guest -------------------------------------------------------------------------------

    def deaf(self, patience_s: float) -> str:
        """Why the guest is not well, asked over both families; "" if it is."""
        try:
            for address in sorted(self._lab.addresses(self._vm.name)):
                answer = udp_ask(self._asker, address, CONTROL_PORT, b"check", patience_s)
                torn = int(json.loads(answer)["bad_pages"])
                if torn:
                    return f"{torn} pages of its memory are torn"
        except (LabError, ValueError) as error:
            return str(error)
        return ""

    def lost_records(self, told: bytes, node: str, most: int | None = None) -> tuple[int, int]:
        """(acknowledged, lost on that node's image, "" if there is none).  told: all that the guest
        has said; most: what it was told later does not count."""
        last = acknowledged(told)
        last = last if most is None else min(last, most)
        if not node or not self.image(node).exists():
            return last, min(last, RECORDS)
        with self.image(node).open("rb") as file:
            return last, len(lost(file.read(RECORDS * SECTOR), RECORDS, last))

    def newest(self) -> str:
        """The NVE whose image has the newest record, of those that are whole; "" if none is."""
        found = []
        for nve in self._lab.fabric.of_kind("nve"):
            image = self.image(nve.name)
            if image.exists() and not _beside(image, ".incoming").exists():
                with image.open("rb") as file:
                    numbers = records_in(file.read(RECORDS * SECTOR), RECORDS)
                found.append((max(numbers, default=0), nve.name))
        return max(found)[1] if found else ""

    def image(self, node: str) -> Path:
        """Where the VM's image lies, or would."""
        return image_at(self._lab.daemons.state_dir(node), self._vm)

    # -- what is left ----------------------------------------------------------------------------

    def leftovers(self, serving: str, holder: str) -> list[str]:
        """Of every NVE but `serving` ("" if none): entries, taps, routes, guests, images (but at
        `holder`, where the VM's image is), marks and sockets; and namespaces that nobody made."""
        found = [
            f"namespace {name}"
            for name in existing(self._lab.info.lab_id)
            if name not in self._lab.info.namespaces
        ]
        for nve in self._lab.fabric.of_kind("nve"):
            found += self._files(nve.name, serving, holder)
            if nve.name != serving and self._lab.daemons.running(nve.name):
                left = remains(self._run, nve.name, self._vm.name)
                if nve.name == self._vm.home:  # while it is away its home redirects
                    left = [line for line in left if "tap" in line or "guest" in line]
                found += left
        return found

    def kept(self, holder: str) -> list[str]:
        """Of a host that lost its power in the midst of handing over: the old image, marked so,
        which stays with its guest's folder until the next copy comes."""
        nves = [nve.name for nve in self._lab.fabric.of_kind("nve") if nve.name != holder]
        return [f"{node}: {self._vm.name}.img{_HANDED}" for node in nves if self._is_old(node)]

    def _is_old(self, node: str) -> bool:
        """Whether its image is marked as handed over, and no QEMU is there to have it."""
        folder = GuestFolder.of(self.image(node).parents[1], VmKey(0, self._vm.name))
        return _beside(self.image(node), _HANDED).exists() and find(folder) is None

    def _files(self, node: str, serving: str, holder: str) -> list[str]:
        image = self.image(node)
        if node != holder and self._is_old(node):
            return []
        names = {path.name for path in image.parent.glob("*")}
        allowed = {image.name} if node in (serving, holder) else {image.name + _OLD}
        found = [f"{node}: {name}" for name in sorted(names - allowed)]
        folder = GuestFolder.of(image.parents[1], VmKey(0, self._vm.name)).path
        if node != serving and folder.exists():
            found.append(f"{node}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
        return found


def _beside(image: Path, mark: str) -> Path:
    return image.with_name(image.name + mark)
