"""Runs a command in Debian's own kernel: a small QEMU guest that sees this machine's files.

run_in_guest(command, out, …) -> Ended(status, console)

The guest has this machine's root (read over virtiofs; what it writes is forgotten), this clone
wherever it lies, and a folder for results, KERNEL_GUEST_OUT inside and `out` outside.  It has no
network but its own.  Not here: what is run there.  Rests on QEMU, its virtiofsd, root, and on
lab/guest for the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

from tests.contract.namespaces import wait_for
from vmmobility.drivers.hypervisor.accelerator import choose_accelerator
from vmmobility.lab import workdir
from vmmobility.lab.guest.cpio import Archive
from vmmobility.lab.guest.kernel_package import (
    BUSYBOX,
    KernelPackage,
    kernel_package,
    require_busybox,
)

HERE = Path(__file__).parent
CLONE = HERE.parents[1]
QEMU = "qemu-system-x86_64"
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
OUT_INSIDE = "/run/kernel-guest/out"
MEMORY = "2G"  # taken as it is used
SOCKET_LIMIT_S = 10.0
LAST_LINES = 80

# In the order of loading.  One that the kernel has built in has no file.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "fuse",
    "virtiofs",
    "overlay",
)
# With QEMU's -no-reboot a panic is the end of the process.  The rest spares TCG a third of its
# work: programs at the same addresses each time are translated once, page tables have a level less,
# and the clock is read without leaving the guest.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog norandmaps nokaslr no5lvl tsc=reliable"
)

Hear = Callable[[str], None]


class GuestFailed(Exception):
    """The guest did not run the command to its end: it did not boot, it panicked, it hung.

    The message ends with the console's last lines.
    """


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended: its exit status, and all that the console said."""

    status: int
    console: str


def run_in_guest(
    command: Sequence[str],
    out: Path,
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    hear: Hear = lambda line: None,
) -> Ended:
    """Boot, run the command in the clone's folder, and end the guest.

    out:         an existing folder; files written to KERNEL_GUEST_OUT appear in it
    limit_s:     of the whole, boot included
    environment: beside HOME, PYTHONPATH (this clone's code) and KERNEL_GUEST_OUT
    hear:        gets each line of the console as it comes

    Raises GuestFailed, EnvironmentProblem where a tool or package is missing.
    """
    if not VIRTIOFSD.exists():
        raise GuestFailed(f"{VIRTIOFSD} does not exist: install the package qemu-system-common")
    package = kernel_package(workdir.cache(), hear)
    accelerator = asyncio.run(choose_accelerator("auto", QEMU, workdir.cache()))
    out = out.resolve()
    (out / "status").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmkg") as name:
        folder = Path(name)
        (folder / "initrd").write_bytes(_initramfs(package, command, environment or {}))
        with (
            _shared(folder / "machine.sock", Path("/"), "always"),
            _shared(folder / "out.sock", out, "none"),
        ):
            console, late = _boot(_qemu(package, folder, accelerator), limit_s, hear)
    return Ended(_status(out, console, f"within {limit_s:.0f} s" if late else ""), console)


def _status(out: Path, console: str, late: str) -> int:
    """The command's, which it has left only if it came to its end."""
    try:
        return int((out / "status").read_text())
    except (OSError, ValueError):
        what = f"has not ended {late}" if late else "ended before its command did"
        last = "\n".join(console.splitlines()[-LAST_LINES:])
        raise GuestFailed(f"the kernel guest {what}; its console ends with:\n{last}") from None


def shared_paths() -> list[Path]:
    """What must be seen inside wherever it lies: the clone, and the Python that runs us."""
    interpreter = Path(sys.executable).resolve()
    named = [CLONE, CLONE / ".venv", Path(sys.prefix), Path(sys.base_prefix), interpreter.parent]
    return list(dict.fromkeys(path.resolve() for path in named if path.exists()))


def _initramfs(
    package: KernelPackage, command: Sequence[str], environment: Mapping[str, str]
) -> bytes:
    require_busybox()
    archive = Archive()
    for folder in ("bin", "dev", "modules", "parameters"):
        archive.add_folder(folder)
    archive.add_device("dev/console", major=5, minor=1)
    archive.add_file("init", (HERE / "init.sh").read_bytes(), mode=0o755)
    archive.add_file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    files = [path for name in MODULES if (path := package.module(name)) is not None]
    for path in files:
        archive.add_file(f"modules/{path.name}", path.read_bytes())
    parameters = {
        "begin": (HERE / "begin.sh").read_text(),
        "command": _script(command, environment),
        "modules": f"{package.modules.parent.resolve()}\n",
        "shared": "".join(f"{path}\n" for path in shared_paths()),
    }
    archive.add_file("modules/order", "".join(f"{path.name}\n" for path in files).encode())
    for name, text in parameters.items():
        archive.add_file(f"parameters/{name}", text.encode())
    return archive.finish()


def _script(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Runs the command in the clone, with the environment that is promised."""
    variables = {
        "HOME": os.environ.get("HOME", "/root"),
        "PYTHONPATH": f"{CLONE / 'src'}:{CLONE}",
        "PYTHONUNBUFFERED": "1",
        "KERNEL_GUEST_OUT": OUT_INSIDE,
        **environment,
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*lines, f"cd {shlex.quote(str(CLONE))} || exit 1", shlex.join(command), ""])


@contextmanager
def _shared(socket: Path, folder: Path, cache: str) -> Iterator[None]:
    """A folder of the machine behind a socket, while the guest runs."""
    log = socket.with_suffix(".log")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            # It never outlives us, also where we are killed.
            ["setpriv", "--pdeathsig", "KILL", str(VIRTIOFSD), f"--socket-path={socket}",
             "-o", f"source={folder}", "-o", f"cache={cache}", "-o", "sandbox=chroot"],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
        )  # fmt: skip
    try:
        with contextlib.suppress(AssertionError):  # what it said says more
            wait_for(
                lambda: socket.exists() or process.poll() is not None, "its socket", SOCKET_LIMIT_S
            )
        if process.poll() is not None or not socket.exists():
            said = log.read_text(errors="replace").strip()
            raise GuestFailed(f"virtiofsd does not share {folder}: {said or 'no word'}")
        yield
    finally:
        process.kill()
        process.wait()


def _qemu(package: KernelPackage, folder: Path, accelerator: str) -> list[str]:
    """QEMU's command line: the memory is shared with virtiofsd."""
    shares: list[str] = []
    for tag in ("machine", "out"):
        shares += ["-chardev", f"socket,id={tag},path={folder / f'{tag}.sock'}"]
        shares += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
    return [
        *("setpriv", "--pdeathsig", "KILL", QEMU),
        *("-machine", f"q35,accel={accelerator},memory-backend=memory"),
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on", "-m", MEMORY),
        *("-smp", str(_cpus()), "-cpu", "host" if accelerator == "kvm" else "max"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(package.kernel), "-initrd", str(folder / "initrd")),
        *("-append", KERNEL_ARGUMENTS, "-serial", "stdio"),
        *shares,
    ]


def _cpus() -> int:
    """Two; but one on a machine that is busy, where the two would wait for each other's locks."""
    return 2 if os.getloadavg()[0] < (os.cpu_count() or 1) else 1


def _boot(command: Sequence[str], limit_s: float, hear: Hear) -> tuple[str, bool]:
    """Run QEMU to its end; what the console said, and whether the time limit ended it."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    late: list[bool] = []

    def end() -> None:
        late.append(True)
        process.kill()

    timer = Timer(limit_s, end)
    timer.start()
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\r\n"))
            hear(lines[-1])
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    return "\n".join(lines), bool(late)
