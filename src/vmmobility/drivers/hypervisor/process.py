"""One QEMU process: its folder, command line, start, and end.

The process is a session of its own and knows nothing of the daemon, so that guests outlive it.
A later daemon finds it by the folder: pid file, monitor socket, definition.
Not here: talking to it (qmp.py, guest.py).  Rests on /proc.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmmobility.drivers.hypervisor import private_files
from vmmobility.drivers.hypervisor.accelerator import find_binary
from vmmobility.drivers.hypervisor.definition import decode, encode
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.errors import DecodeError, EnvironmentProblem, HypervisorError
from vmmobility.wire.values import VmKey

POLL_S = 0.01
EXEC_POLL_S = 0.001
EXEC_POLLS = 2000
EXEC_LOOKS = 10_000  # some milliseconds; a moment is enough
KILL_LIMIT_S = 5.0
LOG_TAIL_OCTETS = 2000
# A guest that breaks into its QEMU can start no program there, nor get other rights.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_CPU = {"kvm": "host", "tcg": "max"}


@dataclass(frozen=True, slots=True)
class GuestFolder:
    """Where everything of one guest lies.  The name is a digest: socket paths must be short."""

    path: Path

    @classmethod
    def of(cls, state_dir: Path, vm: VmKey) -> GuestFolder:
        """The folder of `vm`, which need not exist."""
        return cls(state_dir / hashlib.sha256(f"{vm.vni}/{vm.vm_id}".encode()).hexdigest()[:12])

    @property
    def monitor(self) -> Path:
        """QEMU's monitor socket."""
        return self.path / "qmp"

    @property
    def second_monitor(self) -> Path:
        """QEMU's monitor for the guard of a lease (lease_guard.py)."""
        return self.path / "qmp2"

    @property
    def pid_file(self) -> Path:
        """The pid that QEMU has written itself."""
        return self.path / "pid"

    @property
    def nbd(self) -> Path:
        """Where a waiting QEMU takes the copies of its disks."""
        return self.path / "nbd"

    @property
    def held(self) -> Path:
        """Is there while a guest that is not to run is on its way here, and until it is kept."""
        return self.path / "held"

    @property
    def kept(self) -> Path:
        """Is there if a guest whose memory was sent away is this node's all the same."""
        return self.path / "kept"

    @property
    def console(self) -> Path:
        """What the guest has written to its serial console."""
        return self.path / "console.log"

    @property
    def log(self) -> Path:
        """What QEMU has written to its standard output and error."""
        return self.path / "qemu.log"

    def last_words(self) -> str:
        """The last line that QEMU has logged, or ""."""
        try:
            lines = self.log.read_text(errors="replace")[-LOG_TAIL_OCTETS:].strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


def command_line(
    folder: GuestFolder,
    definition: VmDefinition,
    ports: Sequence[str],
    *,
    binary: str,
    accelerator: str,
    incoming: bool,
    disks: Sequence[str] = (),
    held: bool = False,
) -> list[str]:
    """QEMU's argument list.  Source and destination must get the same machine.

    disks: the words for its disk images (DiskImages.arguments); held: it does not run by itself
    """
    machine = definition.machine
    words = [find_binary(binary), "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-sandbox", SANDBOX]
    words += ["-name", f"guest={_escaped(str(definition.vm))}", "-no-reboot"]
    # suppress-vmdesc: else octets follow the guest's last; a copy cut in them would run twice.
    words += ["-machine", "q35,suppress-vmdesc=on"]
    words += ["-accel", accelerator, "-cpu", _CPU[accelerator]]
    words += ["-smp", str(definition.vcpus), "-m", f"{definition.memory_mib}M"]
    if machine.get("kernel"):  # else it boots from its first disk
        words += ["-kernel", str(machine["kernel"]), "-append", str(machine.get("append", ""))]
    if machine.get("initrd"):
        words += ["-initrd", str(machine["initrd"])]
    words += ["-pidfile", str(folder.pid_file)]
    words += ["-qmp", f"unix:{_escaped(str(folder.monitor))},server=on,wait=off"]
    guard = _escaped(str(folder.second_monitor))
    words += ["-qmp", f"unix:{guard},server=on,wait=off"]
    words += ["-serial", f"file:{folder.console}"]
    for index, (interface, port) in enumerate(zip(definition.interfaces, ports, strict=True)):
        words += ["-netdev", f"tap,id=net{index},ifname={port},script=no,downscript=no"]
        # romfile=: without a boot ROM there is nothing that both ends must have alike.
        device = f"virtio-net-pci,netdev=net{index},mac={interface.mac_text},romfile="
        words += ["-device", f"{device},id=nic{index},addr={0x10 + index:#x}"]
    words += disks
    if incoming:
        words += ["-incoming", "defer"]
    if held:
        words += ["-S"]
    return words


def check_files(definition: VmDefinition) -> None:
    """Raise HypervisorError if a file that the guest boots from does not exist here."""
    if definition.kind != "qemu":
        raise HypervisorError(f"{definition.vm}: its kind is {definition.kind}, not qemu")
    if not definition.machine.get("kernel") and not definition.disks:
        raise HypervisorError(
            f"{definition.vm}: neither a kernel nor a disk is given",
            "set machine.kernel, or add a [[disk]] that it boots from",
        )
    for key in ("kernel", "initrd"):
        name = definition.machine.get(key)
        if name and not Path(name).is_file():
            raise HypervisorError(
                f"{definition.vm}: {key} {name} does not exist",
                f"copy it to this machine, or correct machine.{key}",
            )


async def spawn(folder: GuestFolder, definition: VmDefinition, command: list[str]) -> int:
    """Start QEMU detached from this process; its pid."""
    pid = _spawn(folder, definition, command)
    # For a moment the new process has no command line, by which it is known as ours.
    for _ in range(EXEC_POLLS):
        if is_ours(folder, pid) or not _exists(pid):
            break
        await asyncio.sleep(EXEC_POLL_S)
    return pid


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _spawn(folder: GuestFolder, definition: VmDefinition, command: list[str]) -> int:
    private_files.make_folder(folder.path)
    for stale in (
        folder.monitor,
        folder.second_monitor,
        folder.pid_file,
        folder.console,
        folder.log,
    ):
        stale.unlink(missing_ok=True)
    (folder.path / "definition.json").write_bytes(encode(definition))
    log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
            setsigmask=(),
        )
    except OSError as error:
        raise EnvironmentProblem(
            f"{definition.vm}: cannot start {command[0]}: {error.strerror}"
        ) from None
    finally:
        os.close(log)
        os.close(nothing)


def find(folder: GuestFolder) -> int | None:
    """The pid of the living QEMU of this folder, or None."""
    try:
        pid = int(folder.pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if is_ours(folder, pid) else None


def living(state_dir: Path) -> list[VmKey]:
    """The VMs whose QEMU lives in a folder of `state_dir`, whoever knows of them."""
    found = []
    for definition in sorted(state_dir.glob("*/definition.json")):
        folder = GuestFolder(definition.parent)
        described = defined(folder)
        if described is None:
            continue  # it has no name by which it could be told of, or ended
        vm = described.vm
        if folder == GuestFolder.of(state_dir, vm) and find(folder) is not None:
            found.append(vm)
    return found


def defined(folder: GuestFolder) -> VmDefinition | None:
    """What its QEMU was started with, or None."""
    try:
        return decode((folder.path / "definition.json").read_bytes())
    except (OSError, DecodeError):
        return None


def is_ours(folder: GuestFolder, pid: int) -> bool:
    """Whether `pid` lives and is this folder's QEMU: a pid may have gone to somebody else."""
    reap(pid)
    try:
        for _ in range(EXEC_LOOKS):
            if line := Path(f"/proc/{pid}/cmdline").read_bytes():
                break
            # In the midst of an exec it has no words yet, but a program; one that ended has none.
            os.readlink(f"/proc/{pid}/exe")
            os.sched_yield()
    except OSError:
        return False
    return str(folder.pid_file).encode() in line.split(b"\0")


def reap(pid: int) -> None:
    """Take the exit status of `pid` if it is an ended child of ours (else it stays a zombie)."""
    with suppress(OSError):  # started by an earlier daemon: not our child
        os.waitpid(pid, os.WNOHANG)


async def wait_for_end(folder: GuestFolder, pid: int, limit_s: float) -> bool:
    """Whether QEMU has ended within the limit."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while is_ours(folder, pid):
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def kill(folder: GuestFolder, vm: VmKey, pid: int) -> None:
    """End QEMU by SIGKILL.  The pid is pinned before it is verified, so none other is hit."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if is_ours(folder, pid):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
    if not await wait_for_end(folder, pid, KILL_LIMIT_S):
        raise HypervisorError(
            f"{vm}: QEMU (pid {pid}) does not end on SIGKILL", "the kernel holds it: see its stack"
        )


def forget(folder: GuestFolder) -> None:
    """Remove the folder of a guest that has ended."""
    shutil.rmtree(folder.path, ignore_errors=True)


def _escaped(text: str) -> str:
    """A value inside one of QEMU's comma-separated options."""
    return text.replace(",", ",,")
