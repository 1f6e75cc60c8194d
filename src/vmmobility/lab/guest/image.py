"""The lab's real guest: a kernel and an initramfs that boot in seconds under TCG.

guest_image(build_dir) -> GuestImage(kernel, initrd)     builds once, then answers from the cache
kernel_arguments(interfaces, mem_mib, dirty_mibps) -> the kernel's command line

The kernel is Debian's own cloud kernel, fetched with `apt-get download` and unpacked, never
installed.  Not here: how QEMU is started (drivers/hypervisor).  Rests on apt-get, apt-cache,
dpkg-deb, gcc and busybox-static of the machine, and on cpio.py.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmmobility.errors import EnvironmentProblem, LabError
from vmmobility.lab.guest.cpio import Archive
from vmmobility.wire.values import Interface, Prefix

META_PACKAGE = "linux-image-cloud-amd64"
SOURCES = Path(__file__).parent
GUESTD = SOURCES / "guestd.c"
INIT = SOURCES / "init.sh"
COMPILE = ("gcc", "-static", "-O2", "-Wall", "-o")
BUSYBOX = Path("/bin/busybox")

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
)

# mitigations=off, nowatchdog: each saves work under TCG.  panic=-1 with QEMU's -no-reboot turns a
# panic into the end of the process, which the driver reports.
BASE_ARGUMENTS = "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog"
COMMAND_LINE_LIMIT = 2048  # bytes: COMMAND_LINE_SIZE of x86
COMMAND_LIMIT_S = 300.0

Progress = Callable[[str], None]


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
    kernel_dir = _kernel(build_dir, progress)
    key = _content_key(kernel_dir)
    image = GuestImage(kernel=kernel_dir / "vmlinuz", initrd=build_dir / f"initrd-{key}.gz")
    if not image.initrd.exists():
        progress("building the guest's initramfs")
        _put(image.initrd, _initramfs(kernel_dir, build_dir))
    return image


def kernel_arguments(
    interfaces: Sequence[Interface], mem_mib: int = 0, dirty_mibps: int = 0
) -> str:
    """The command line that gives the guest its addresses and guestd its work.

    mem_mib: MiB of checksummed memory; dirty_mibps: MiB/s of it that are rewritten.
    A prefix shorter than an address belongs to the guest as a whole.
    """
    words = [BASE_ARGUMENTS, f"mem_mib={mem_mib}", f"dirty_mibps={dirty_mibps}"]
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


def _kernel(build_dir: Path, progress: Progress) -> Path:
    """The folder with vmlinuz and modules/ of the newest kernel that was built or is offered."""
    known = sorted(build_dir.glob("linux-image-*/vmlinuz"), key=lambda p: p.stat().st_mtime)
    if known:  # the cache answers without asking the package system
        return known[-1].parent
    package = _real_kernel_package()
    target = build_dir / package
    with tempfile.TemporaryDirectory(dir=build_dir, prefix="unpack-") as name:
        work = Path(name)
        progress(f"fetching {package}")
        # As root, apt would fetch as its own user, who may not write here.
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], cwd=work)
        archives = list(work.glob("*.deb"))
        if not archives:
            raise EnvironmentProblem(f"apt-get has not fetched {package}", "try apt-get update")
        progress("unpacking the kernel")
        _run(["dpkg-deb", "-x", str(archives[0]), str(work / "root")])
        _collect(work / "root", work / "out")
        if target.exists():
            shutil.rmtree(target)
        (work / "out").rename(target)
    return target


def _real_kernel_package() -> str:
    text = _run(["apt-cache", "depends", META_PACKAGE])
    match = re.search(r"^\s*Depends:\s*(linux-image-\S+)\s*$", text, re.MULTILINE)
    if match is None:
        raise EnvironmentProblem(
            f"apt-cache knows no kernel behind {META_PACKAGE}",
            "run apt-get update on Debian with its main archive enabled",
        )
    return match[1]


def _collect(root: Path, out: Path) -> None:
    """Pick the kernel and the needed modules out of an unpacked package."""
    kernels = list((root / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise EnvironmentProblem(f"the package of {META_PACKAGE} holds no vmlinuz")
    (out / "modules").mkdir(parents=True)
    found = {path.stem: path for path in root.rglob("*.ko")}
    for name in MODULES:
        if name in found:
            shutil.copy(found[name], out / "modules" / f"{name}.ko")
    shutil.copy(kernels[0], out / "vmlinuz")


def _content_key(kernel_dir: Path) -> str:
    """A hash of everything that the initramfs is made from."""
    _require_busybox()
    digest = hashlib.sha256(" ".join(COMPILE).encode())
    sources = [GUESTD, INIT, SOURCES / "cpio.py", Path(__file__), BUSYBOX]
    for path in [*sources, *sorted((kernel_dir / "modules").iterdir())]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _initramfs(kernel_dir: Path, build_dir: Path) -> bytes:
    with tempfile.TemporaryDirectory(dir=build_dir, prefix="compile-") as name:
        binary = Path(name) / "guestd"
        _run([*COMPILE, str(binary), str(GUESTD)])
        guestd = binary.read_bytes()
    present = [m for m in MODULES if (kernel_dir / "modules" / f"{m}.ko").exists()]
    archive = Archive()
    for folder in ("bin", "dev", "modules", "proc", "sys", "tmp"):
        archive.add_folder(folder)
    archive.add_device("dev/console", major=5, minor=1)
    archive.add_file("init", INIT.read_bytes(), mode=0o755)
    archive.add_file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    archive.add_file("bin/guestd", guestd, mode=0o755)
    for module in present:
        archive.add_file(f"modules/{module}.ko", (kernel_dir / f"modules/{module}.ko").read_bytes())
    archive.add_file("modules/order", "".join(f"{m}.ko\n" for m in present).encode())
    return gzip.compress(archive.finish(), compresslevel=6, mtime=0)


def _require_busybox() -> None:
    if not BUSYBOX.exists():
        raise EnvironmentProblem(f"{BUSYBOX} does not exist", "install the package busybox-static")


def _put(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen half-written."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(data)
    partial.rename(path)


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    """Run a build step; its standard output.  A failure becomes an EnvironmentProblem."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False
        )
    except FileNotFoundError:
        raise EnvironmentProblem(
            f"{command[0]} is not installed",
            f"building the guest image needs {command[0]}: install it, on Debian or its like",
        ) from None
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(
            f"{' '.join(command[:3])} has not ended within {COMMAND_LIMIT_S:.0f} s",
            "see whether this machine reaches its package archive",
        ) from None
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise EnvironmentProblem(
            f"{command[0]} failed: {last}", f"run it by hand: {' '.join(command)}"
        )
    return done.stdout
