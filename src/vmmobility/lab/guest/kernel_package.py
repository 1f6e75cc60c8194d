"""Debian's own cloud kernel: fetched as a package and unpacked, never installed.

kernel_package(build_dir) -> KernelPackage     fetches once, then answers from the cache

Who boots it: image.py (the lab's guests), and the tests that need a kernel with modules which this
machine's own lacks.  Rests on apt-get, apt-cache, dpkg-deb and busybox-static of the machine.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmmobility.errors import EnvironmentProblem

META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = Path("/bin/busybox")
COMMAND_LIMIT_S = 300.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class KernelPackage:
    """An unpacked kernel: `folder` holds vmlinuz and lib/modules/VERSION with its dependencies."""

    folder: Path

    @property
    def kernel(self) -> Path:
        """What QEMU boots."""
        return self.folder / "vmlinuz"

    @property
    def modules(self) -> Path:
        """lib/modules/VERSION, as the kernel's own modprobe looks for it."""
        return next((self.folder / "lib/modules").iterdir())

    def module(self, name: str) -> Path | None:
        """A module's file; None where the kernel has it built in, or not at all."""
        lines = (self.modules / "modules.dep").read_text().splitlines()
        ending = f"/{name}.ko"
        paths = (line.partition(":")[0] for line in lines)
        return next((self.modules / path for path in paths if path.endswith(ending)), None)


def kernel_package(build_dir: Path, progress: Progress = lambda line: None) -> KernelPackage:
    """The newest kernel that was unpacked in `build_dir`, else the one that Debian offers.

    Raises EnvironmentProblem naming a missing tool or package.
    """
    kernels = build_dir / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    known = sorted(kernels.glob("linux-image-*/vmlinuz"), key=lambda p: p.stat().st_mtime)
    if known:  # the cache answers without asking the package system
        return KernelPackage(known[-1].parent)
    package = _real_package()
    target = kernels / package
    with tempfile.TemporaryDirectory(dir=kernels, prefix="unpack-") as name:
        work = Path(name)
        progress(f"fetching {package}")
        # As root, apt would fetch as its own user, who may not write here.
        run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], cwd=work)
        archives = list(work.glob("*.deb"))
        if not archives:
            raise EnvironmentProblem(f"apt-get has not fetched {package}", "try apt-get update")
        progress("unpacking the kernel")
        run(["dpkg-deb", "-x", str(archives[0]), str(work / "root")])
        _collect(work / "root", work / "out")
        try:
            (work / "out").rename(target)
        except OSError:  # somebody else has been faster
            if not (target / "vmlinuz").exists():
                raise
    return KernelPackage(target)


def _real_package() -> str:
    text = run(["apt-cache", "depends", META_PACKAGE])
    match = re.search(r"^\s*Depends:\s*(linux-image-\S+)\s*$", text, re.MULTILINE)
    if match is None:
        raise EnvironmentProblem(
            f"apt-cache knows no kernel behind {META_PACKAGE}",
            "run apt-get update on Debian with its main archive enabled",
        )
    return match[1]


def _collect(root: Path, out: Path) -> None:
    """The kernel and its modules, with the tables that modprobe reads."""
    kernels = list((root / "boot").glob("vmlinuz-*"))
    trees = list((root / "lib/modules").glob("*"))
    if len(kernels) != 1 or len(trees) != 1:
        raise EnvironmentProblem(
            f"the package of {META_PACKAGE} holds no vmlinuz with modules",
            "run apt-get update on Debian with its main archive enabled",
        )
    require_busybox()
    run([str(BUSYBOX), "depmod", "-b", str(root), trees[0].name])
    out.mkdir()
    (out / "lib").mkdir()
    (root / "lib/modules").rename(out / "lib/modules")
    kernels[0].rename(out / "vmlinuz")


def require_busybox() -> None:
    """Raises EnvironmentProblem where the static busybox is missing."""
    if not BUSYBOX.exists():
        raise EnvironmentProblem(f"{BUSYBOX} does not exist", "install the package busybox-static")


def run(command: Sequence[str], cwd: Path | None = None) -> str:
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
