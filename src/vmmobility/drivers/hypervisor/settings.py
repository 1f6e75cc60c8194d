"""What an operator may set of the drivers for QEMU, with the reasons for the values.

Rests on host_files.py.  docs/design/hypervisor.md shows how the figures were found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmmobility.drivers.hypervisor.host_files import IMAGES

MIB = 1024 * 1024
DISK_HANG_S = 15.0


@dataclass(frozen=True, slots=True)
class QemuSettings:
    """Settings of QemuHypervisor.

    binary:                     name or path of QEMU's system emulator
    accelerator:                "auto" (probe), "kvm" or "tcg"
    copy_bytes_per_s:           pace of the pre-copy
    hold_remaining_bytes:       the copy is held once less than this remains
    converge_limit_s:           a copy that has not converged by then has failed
    stall_limit_s:              a copy without any progress for that long has failed
    disk_stall_limit_s:         the same of disks, where a flush may take long; a path that is cut
                                breaks after stall_limit_s all the same
    disk_hang_limit_s:          a destination that takes nothing of a disk for so long has failed:
                                until then the guest's writes wait
    switch_limit_s:             from proceed() to completion; then the move is broken off
    postcopy_bytes_per_s:       pace in post-copy of what the guest does not ask for; 0: as it comes
    recover_limit_s:            in post-copy, a source that has lost its destination looks for it so
                                long; then nobody waits for the rest any more
    start_limit_s:              QEMU must answer its monitor within this
    stop_limit_s:               QEMU must end within this after quit, else it is killed
    ports:                      first and last TCP port where an incoming guest's memory may arrive
    disks:                      folder of the disk images whose path is relative; None: inside the
                                driver's state folder
    images:                     folders where kernels, initrds and templates of disks may lie
    disk_folders:               further folders where disk images may lie (host_files.py)
    tls:                        folder of the certificates of the streams between hosts
                                (stream_tls.py); None: in the clear
    """

    binary: str = "qemu-system-x86_64"
    accelerator: str = "auto"
    copy_bytes_per_s: int = 200 * MIB
    hold_remaining_bytes: int = 4 * MIB
    converge_limit_s: float = 120.0
    stall_limit_s: float = 5.0
    disk_stall_limit_s: float = 60.0
    disk_hang_limit_s: float = DISK_HANG_S
    switch_limit_s: float = 3.0
    postcopy_bytes_per_s: int = 0
    recover_limit_s: float = 120.0
    start_limit_s: float = 20.0
    stop_limit_s: float = 3.0
    ports: tuple[int, int] = (49152, 49407)
    disks: Path | None = None
    images: tuple[Path, ...] = (IMAGES,)
    disk_folders: tuple[Path, ...] = ()
    tls: Path | None = None


@dataclass(frozen=True, slots=True)
class ExternalSettings:
    """Settings of ExternalHypervisor: how guests of other hands are watched.

    absent_s:     a monitor that is not there is looked for so often
    retry_s:      one that does not answer is tried again after this, then after twice as long,
    retry_most_s: up to this
    answer_s:     a monitor must answer within this
    patrol_s:     a guest of which nothing is heard is asked so often
    settle_s:     a question waits so long for the end of a switch that is under way
    """

    absent_s: float = 0.25
    retry_s: float = 0.5
    retry_most_s: float = 5.0
    answer_s: float = 2.0
    patrol_s: float = 5.0
    settle_s: float = 1.5
