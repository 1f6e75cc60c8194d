"""How fast a disk is moved: our driver against `qemu-img convert` to `qemu-nbd`, in turn.

    python tools/bench_disk_move.py [--mib 1024] [--rounds 5] [--tls] [--folder DIR] [--json FILE]

Both copy the same raw image of random octets over this machine's loopback, in the same run; each
round takes both.  Ours is a whole copy by QEMU's mirror through the driver, from copy_out() until
every further write goes to both ends, of a guest that runs (without an operating system); theirs
is qemu-img's whole run.  With --tls each round takes ours by TLS, too.  Nothing is flushed to the
disk in the measured time.  Needs QEMU, qemu-img and qemu-nbd; no rights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tools.make_stream_certificates import Authority  # noqa: E402
from vmmobility.drivers.hypervisor.interface import (  # noqa: E402
    Disk,
    GuestEvent,
    GuestReport,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor  # noqa: E402
from vmmobility.drivers.hypervisor.settings import MIB, QemuSettings  # noqa: E402
from vmmobility.wire.values import VmKey  # noqa: E402

LOOPBACK = "127.0.0.1"
VM = VmKey(0, "bench")
LIMIT_S = 600.0
UNLIMITED = 1 << 40


def fill(path: Path, mib: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as image:
        for _ in range(mib):
            image.write(os.urandom(MIB))


class Ours:
    """Two of our drivers, and a guest at the first."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.image = folder / "a/disks/vm.img"
        self._copied = asyncio.Event()
        self._folder = folder
        self._open(None)
        self._definition = VmDefinition(
            VM, "qemu", (), memory_mib=64, disks=(Disk("vm.img", "raw", mib),)
        )

    def _hear(self, report: GuestReport) -> None:
        # The first report that also tells of memory: the disks are whole.
        done = report.detail.get("disk_bytes", -1) == report.detail.get("disk_total_bytes")
        if report.event is GuestEvent.PROGRESS and done and report.detail["disk_bytes"]:
            self._copied.set()
        elif report.event is GuestEvent.FAILED and not self._copied.is_set():
            raise SystemExit(f"error: the copy failed: {report.detail}")

    def _open(self, tls: Path | None) -> None:
        settings = QemuSettings(accelerator="tcg", copy_bytes_per_s=UNLIMITED, tls=tls)
        self._source = QemuHypervisor(self._folder / "a", self._hear, settings)
        self._destination = QemuHypervisor(self._folder / "b", lambda report: None, settings)

    async def go_by(self, tls: Path | None) -> None:
        """The streams go by TLS with these certificates from now on, or in the clear."""
        await self._close()
        self._open(tls)
        await self._source.adopt([self._definition])

    async def _close(self) -> None:
        for hypervisor in (self._source, self._destination):
            await hypervisor.close()

    async def start(self) -> None:
        await self._source.start(self._definition, [])

    async def copy(self) -> float:
        """One copy, given up when it is whole; seconds."""
        at = await self._destination.prepare_incoming(self._definition, [], LOOPBACK)
        self._copied.clear()
        began = time.monotonic()
        await self._source.copy_out(VM, *at)
        async with asyncio.timeout(LIMIT_S):
            await self._copied.wait()
        took = time.monotonic() - began
        await self._source.cancel(VM)
        await self._destination.cancel(VM)
        return took

    async def end(self) -> None:
        for hypervisor in (self._source, self._destination):
            await hypervisor.stop(VM)
        await self._close()


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


def theirs(image: Path, target: Path, mib: int) -> float:
    """One run of qemu-img convert; seconds."""
    port = free_port()
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(target), f"{mib}M"], check=True)
    pid_file = target.with_suffix(".pid")
    serve = ["qemu-nbd", "-t", "--fork", "--pid-file", str(pid_file), "-f", "raw", "-x", "copy"]
    subprocess.run([*serve, "-b", LOOPBACK, "-p", str(port), str(target)], check=True)
    try:
        began = time.monotonic()
        url = f"nbd://{LOOPBACK}:{port}/copy"
        subprocess.run(
            ["qemu-img", "convert", "-n", "-U", "-f", "raw", "-O", "raw", str(image), url],
            check=True,
        )
        took = time.monotonic() - began
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
    target.unlink()
    return took


async def measure(folder: Path, mib: int, rounds: int, *, tls: bool) -> dict[str, object]:
    ours = Ours(folder, mib)
    fill(ours.image, mib)
    await ours.start()
    speeds: dict[str, list[float]] = {"ours": [], "qemu_img": []}
    certificates = folder / "tls"
    if tls:
        speeds["ours_tls"] = []
        Authority(folder / "ca").issue(certificates, [LOOPBACK])
    try:
        for number in range(rounds):
            speeds["ours"].append(mib * MIB / 1e6 / await ours.copy())
            took = await asyncio.to_thread(theirs, ours.image, folder / "copy.img", mib)
            speeds["qemu_img"].append(mib * MIB / 1e6 / took)
            if tls:
                await ours.go_by(certificates)
                speeds["ours_tls"].append(mib * MIB / 1e6 / await ours.copy())
                await ours.go_by(None)
            said = ", ".join(f"{name} {found[-1]:.0f} MB/s" for name, found in speeds.items())
            sys.stdout.write(f"round {number + 1}: {said}\n")
            sys.stdout.flush()
    finally:
        await ours.end()
    medians = {name: round(statistics.median(found), 1) for name, found in speeds.items()}
    ratio_tls = {"ratio_tls": round(medians["ours_tls"] / medians["ours"], 3)} if tls else {}
    return {
        "mib": mib,
        "rounds": rounds,
        "megabytes_per_s": {n: [round(s, 1) for s in found] for n, found in speeds.items()},
        "median_megabytes_per_s": medians,
        "ratio": round(medians["ours"] / medians["qemu_img"], 3),
        **ratio_tls,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tls", action="store_true", help="by TLS, too (needs openssl)")
    parser.add_argument("--folder", type=Path, help="where the images lie (default: a new folder)")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmd", dir=words.folder) as folder:
        found = asyncio.run(measure(Path(folder), words.mib, words.rounds, tls=words.tls))
    medians = found["median_megabytes_per_s"]
    assert isinstance(medians, dict)
    sys.stdout.write(
        f"median: ours {medians['ours']} MB/s, qemu-img {medians['qemu_img']} MB/s; "
        f"ours / qemu-img = {found['ratio']}\n"
    )
    if words.tls:
        sys.stdout.write(f"by TLS {medians['ours_tls']} MB/s; TLS / clear = {found['ratio_tls']}\n")
    if words.json:
        words.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
