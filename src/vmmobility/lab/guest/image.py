"""The lab's real guest: a kernel and an initramfs that boot in seconds under TCG.

guest_image(build_dir) -> GuestImage(kernel, initrd)     builds once, then answers from the cache
kernel_arguments(interfaces, mem_mib, dirty_mibps) -> the kernel's command line

The kernel is Debian's own cloud kernel (kernel_package.py).  Not here: how QEMU is started
(drivers/hypervisor).  Rests on gcc and busybox-static of the machine, and on cpio.py.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmmobility.errors import LabError
from vmmobility.lab.guest.cpio import Archive
from vmmobility.lab.guest.kernel_package import (
    BUSYBOX,
    KernelPackage,
    Progress,
    kernel_package,
    require_busybox,
    run,
)
from vmmobility.wire.values import Interface, Prefix

SOURCES = Path(__file__).parent
GUESTD = SOURCES / "guestd.c"
DISKD = SOURCES / "diskd.c"
INIT = SOURCES / "init.sh"
COMPILE = ("gcc", "-static", "-O2", "-Wall", "-o")

# In the order of loading: each needs only those above it.  One that the kernel has built in is
# not in the package, and is left out.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_blk",
)

# mitigations=off, nowatchdog: each saves work under TCG.  panic=-1 with QEMU's -no-reboot turns a
# panic into the end of the process, which the driver reports.
BASE_ARGUMENTS = "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog"
COMMAND_LINE_LIMIT = 2048  # bytes: COMMAND_LINE_SIZE of x86


@dataclass(frozen=True, slots=True)
class GuestImage:
    """Paths of a bootable kernel and its initramfs."""

    kernel: Path
    initrd: Path


def guest_image(build_dir: Path, progress: Progress = lambda line: None) -> GuestImage:
    """Build the guest in `build_dir`, or find what an earlier call has built there.

    `progress` gets a line a step.  Raises EnvironmentProblem naming a missing tool or package.
    """
    build_dir.mkdir(parents=True, exist_ok=True)
    package = kernel_package(build_dir, progress)
    key = _content_key(package)
    image = GuestImage(kernel=package.kernel, initrd=build_dir / f"initrd-{key}.gz")
    if not image.initrd.exists():
        progress("building the guest's initramfs")
        _put(image.initrd, _initramfs(package, build_dir))
    return image


def kernel_arguments(
    interfaces: Sequence[Interface],
    mem_mib: int = 0,
    dirty_mibps: int = 0,
    disk_records: int = 0,
    disk_every_ms: int = 10,
) -> str:
    """The command line that gives the guest its addresses and guestd its work.

    mem_mib: MiB of checksummed memory; dirty_mibps: MiB/s of it that are rewritten; disk_records:
    how many records diskd keeps at the beginning of the first disk, 0: it does not run;
    disk_every_ms: its pause between two.
    A prefix shorter than an address belongs to the guest as a whole.
    """
    words = [BASE_ARGUMENTS, f"mem_mib={mem_mib}", f"dirty_mibps={dirty_mibps}"]
    if disk_records:
        words.append(f"disk_records={disk_records} disk_every_ms={disk_every_ms}")
    for interface in interfaces:
        words.append(",".join(["vmm=" + interface.mac_text, *map(_entry, interface.prefixes)]))
    line = " ".join(words)
    if len(line) >= COMMAND_LINE_LIMIT:
        raise LabError(
            f"the guest's kernel command line would have {len(line)} bytes",
            f"give the VM fewer addresses: the limit is {COMMAND_LINE_LIMIT - 1} bytes",
        )
    return line


def _entry(prefix: Prefix) -> str:
    if prefix.prefixlen == prefix.max_prefixlen:
        return str(prefix)
    # The network address itself is a broadcast or subnet-router address, except in pairs.
    first = prefix[0] if prefix.num_addresses == 2 else prefix[1]
    return f"{first}@{prefix}"


def _modules(package: KernelPackage) -> list[Path]:
    """Those of MODULES that the kernel has as files, in their order."""
    return [path for name in MODULES if (path := package.module(name)) is not None]


def _content_key(package: KernelPackage) -> str:
    """A hash of everything that the initramfs is made from."""
    require_busybox()
    digest = hashlib.sha256(" ".join(COMPILE).encode())
    sources = [GUESTD, DISKD, INIT, SOURCES / "cpio.py", Path(__file__), BUSYBOX]
    for path in [*sources, *_modules(package)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _initramfs(package: KernelPackage, build_dir: Path) -> bytes:
    with tempfile.TemporaryDirectory(dir=build_dir, prefix="compile-") as name:
        binaries = {}
        for source in (GUESTD, DISKD):
            binary = Path(name) / source.stem
            run([*COMPILE, str(binary), str(source)])
            binaries[source.stem] = binary.read_bytes()
    present = _modules(package)
    archive = Archive()
    for folder in ("bin", "dev", "modules", "proc", "sys", "tmp"):
        archive.add_folder(folder)
    archive.add_device("dev/console", major=5, minor=1)
    archive.add_file("init", INIT.read_bytes(), mode=0o755)
    archive.add_file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    for program, octets in binaries.items():
        archive.add_file(f"bin/{program}", octets, mode=0o755)
    for module in present:
        archive.add_file(f"modules/{module.name}", module.read_bytes())
    archive.add_file("modules/order", "".join(f"{m.name}\n" for m in present).encode())
    return gzip.compress(archive.finish(), compresslevel=6, mtime=0)


def _put(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen half-written."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(data)
    partial.rename(path)
