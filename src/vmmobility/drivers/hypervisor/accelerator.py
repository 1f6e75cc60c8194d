"""Finds out whether KVM really runs a guest here, by running one.

A /dev/kvm that opens, and even runs a few instructions, proves nothing: some nested hosts emulate
a guest's instructions one by one, and no kernel ever boots.  So a guest of one long loop is run,
with a time limit: 0.1 s on hardware, minutes where it is emulated.  The answer is kept in the
process and in a small file in the state folder, valid for this boot of this kernel.

Not here: the guests' command line (process.py).  Rests on QEMU's device isa-debug-exit.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path

from vmmobility.drivers.hypervisor import private_files
from vmmobility.errors import EnvironmentProblem

PROBE_LIMIT_S = 3.0
ACCELERATORS = ("kvm", "tcg")

_ROM_SIZE = 64 * 1024
_RESET_VECTOR = _ROM_SIZE - 16
# Goes from real mode to 64-bit mode, counts 2**28 down, and writes 0x10 to port 0xf4:
#   cli; lgdtl %cs:gdtr; cr0 |= PE; ljmpl $8:pm
#   pm: page tables at 0x1000 map the 2 MiB below 4 GiB; cr4 = PAE; EFER = LME; cr0 = PG|PE
#       ljmp $24:lm
#   lm: mov $0x10000000,%ecx; 1: dec %rcx; jnz 1b; mov $0x10,%al; out %al,$0xf4; 2: hlt; jmp 2b
#   gdt: null, 32-bit code, data, 64-bit code
_CODE = bytes.fromhex(
    "fa2e660f0116c0000f20c00c010f22c066ea1800ffff0800b8100000008ed8c7"
    "050010000003200000c7050410000000000000c7051820000003300000c7051c"
    "20000000000000c705f83f00008300e0ffc705fc3f000000000000b800100000"
    "0f22d8b8200000000f22e0b9800000c0b80001000031d20f30b8010000800f22"
    "c0ea8800ffff1800b90000001048ffc975fbb010e6f4f4ebfd0f1f8000000000"
    "0000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf00"
    "1f00a000ffff"
)
_JUMP = b"\xe9" + (_ROM_SIZE - _RESET_VECTOR - 3).to_bytes(2, "little")  # to the ROM's start
_ROM = _CODE.ljust(_RESET_VECTOR, b"\xf4") + _JUMP.ljust(16, b"\xf4")
_PROBE_EXIT = 0x10 << 1 | 1  # what isa-debug-exit makes of 0x10
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_answers: dict[str, str] = {}


def find_binary(binary: str) -> str:
    """The path of QEMU.  Raises EnvironmentProblem if it is not installed."""
    path = shutil.which(binary)
    if path is None:
        raise EnvironmentProblem(
            f"QEMU ({binary}) is not installed", "install the package qemu-system-x86"
        )
    return path


async def choose_accelerator(wanted: str, binary: str, state_dir: Path) -> str:
    """ "kvm" or "tcg".  `wanted` "auto" probes, once a boot of this machine."""
    if wanted in ACCELERATORS:
        return wanted
    if wanted != "auto":
        raise EnvironmentProblem(
            f"unknown accelerator {wanted!r}", f"use auto, {' or '.join(ACCELERATORS)}"
        )
    path = find_binary(binary)
    key = f"{platform.release()} {_boot_id()} {path}"
    if key not in _answers:
        cache = state_dir / "accelerator.json"
        answer = _remembered(cache, key)
        if answer is None:
            answer = "kvm" if await kvm_runs(path) else "tcg"
            _remember(cache, key, answer)
        _answers[key] = answer
    return _answers[key]


async def kvm_runs(binary: str) -> bool:
    """Whether a guest under KVM executes its first instructions within the limit."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with tempfile.NamedTemporaryFile(prefix="vmmob-probe-") as rom:
        rom.write(_ROM)
        rom.flush()
        process = await asyncio.create_subprocess_exec(
            # It never outlives a daemon that is killed: it would spin for minutes.
            *("setpriv", "--pdeathsig", "KILL"),
            *(binary, "-machine", "pc,accel=kvm", "-m", "16", "-nodefaults", "-no-user-config"),
            *("-display", "none", "-no-reboot", "-bios", rom.name),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(PROBE_LIMIT_S):
                return await process.wait() == _PROBE_EXIT
        except TimeoutError:
            return False
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _remembered(cache: Path, key: str) -> str | None:
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(known, dict) or known.get("key") != key:
        return None
    answer = known.get("accelerator")
    return answer if answer in ACCELERATORS else None


def _remember(cache: Path, key: str, answer: str) -> None:
    private_files.make_folder(cache.parent)
    cache.write_text(json.dumps({"key": key, "accelerator": answer}) + "\n")


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
