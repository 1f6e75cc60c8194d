"""Judging what a scenario asserts of guests' disks.

The judge answers "" if it is so, else what it saw instead.  Not here: the disks (guest_disks.py).
"""

from __future__ import annotations

from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.hypervisor.settings import MIB
from vmmobility.lab.guest.disk_records import SECTOR, acknowledged, lost
from vmmobility.lab.guest_disks import PATTERN, RECORDS, disk_of, image_at
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.step_types import Assertion
from vmmobility.wire.values import VmKey


def disk_writes(run: LabRun, what: Assertion) -> str:
    """Every record that the guest was told is on its disk is on the serving NVE's image, and what
    it never touched is as it was; no other NVE has an image in use, nor a mark of an unfinished
    copy."""
    vm, daemons = run.lab.fabric.vm(what.vm), run.lab.daemons
    found = daemons.ask(daemons.manager, "GET", f"/v1/bindings/{what.vm}?vni=0")
    serving = str((found[0] if isinstance(found, list) else found)["nve"])
    state_dir = daemons.state_dir(serving)
    console = GuestFolder.of(state_dir / "guests", VmKey(0, vm.name)).console
    last = acknowledged(console.read_bytes())
    if not last:
        return f"{what.vm} has written nothing at {serving} yet"
    with image_at(state_dir, vm).open("rb") as image:
        written = image.read(RECORDS * SECTOR)
        missing = lost(written, RECORDS, last)
        if missing:
            return f"{len(missing)} of {last} acknowledged writes are lost, the first {missing[0]}"
        while octets := image.read(MIB):
            if octets not in (PATTERN, bytes(MIB)):
                return f"{what.vm}'s disk has changed where it was never written"
    folders = {
        nve.name: image_at(daemons.state_dir(nve.name), vm).parent
        for nve in run.lab.fabric.of_kind("nve")
    }
    images = {
        name: sorted(path.name for path in folder.glob("*") if path.suffix != ".moved")
        for name, folder in folders.items()
    }
    wanted = {name: [disk_of(vm).path] if name == serving else [] for name in folders}
    return "" if images == wanted else f"images of disks: {images}"
