"""Finds out whether KVM really runs a guest here, by running one.

A /dev/kvm that opens, and even creates a VM, proves nothing: on some nested hosts no instruction
ever runs.  So a guest of two instructions is run, with a time limit.  The answer is kept in the
process and in a small file in the state folder, valid for this boot of this kernel.

Not here: the guests' command line (process.py).  Rests on QEMU's device isa-debug-exit.
"""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import tempfile
from pathlib import Path

from vmmobility.errors import EnvironmentProblem

PROBE_LIMIT_S = 3.0
ACCELERATORS = ("kvm", "tcg")

_ROM_SIZE = 64 * 1024
# mov al, 0x10; out 0xf4, al; hlt -- at the reset vector, 16 octets below the ROM's end
_PROBE_CODE = bytes.fromhex("b010e6f4f4")
_PROBE_EXIT = 0x10 << 1 | 1
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
    key = f"{platform.release()} {_BOOT_ID.read_text().strip()} {path}"
    if key not in _answers:
        cache = state_dir / "accelerator.json"
        answer = _remembered(cache, key)
        if answer is None:
            answer = "kvm" if await kvm_runs(path) else "tcg"
            cache.write_text(json.dumps({"key": key, "accelerator": answer}) + "\n")
        _answers[key] = answer
    return _answers[key]


async def kvm_runs(binary: str) -> bool:
    """Whether a guest under KVM executes its first instructions within the limit."""
    if not Path("/dev/kvm").exists():
        return False
    with tempfile.NamedTemporaryFile(prefix="vmmob-probe-") as rom:
        rom.write(_PROBE_CODE.rjust(_ROM_SIZE - 16 + len(_PROBE_CODE), b"\xf4").ljust(_ROM_SIZE))
        rom.flush()
        process = await asyncio.create_subprocess_exec(
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
