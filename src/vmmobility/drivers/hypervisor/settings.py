"""What an operator may set of the QEMU driver, with the reasons for the values.

Rests on nothing.  docs/design/hypervisor.md shows how the figures were found.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class QemuSettings:
    """Settings of QemuHypervisor.

    binary:                     name or path of QEMU's system emulator
    accelerator:                "auto" (probe), "kvm" or "tcg"
    copy_bytes_per_s:           bandwidth of the pre-copy
    switch_bytes_per_s:         bandwidth from proceed() on
    hold_remaining_bytes:       the copy is held once less than this remains
    hold_bytes_per_s:           bandwidth while held: as little as the final decision allows, for
                                QEMU derives "what can be sent within the downtime limit" from the
                                bandwidth it has seen in the last window
    settle_ms:                  shortest time between the last dirty-log sync and CONVERGED
    lead_ms:                    ABOUT_TO_STOP comes at least this long before the predicted tick;
                                longer where redirects were seen to take longer
    converge_limit_s:           a copy that has not converged by then has failed
    stall_limit_s:              a copy without any progress for that long has failed
    switch_limit_s:             from proceed() to completion; then the move is broken off
    start_limit_s:              QEMU must answer its monitor within this
    stop_limit_s:               QEMU must end within this after quit, else it is killed
    ports:                      first and last TCP port where an incoming guest's memory may arrive
    """

    binary: str = "qemu-system-x86_64"
    accelerator: str = "auto"
    copy_bytes_per_s: int = 200 * MIB
    switch_bytes_per_s: int = 10_000 * MIB
    hold_remaining_bytes: int = 8 * MIB
    hold_bytes_per_s: int = 20_000
    settle_ms: int = 0
    lead_ms: float = 12.0
    converge_limit_s: float = 120.0
    stall_limit_s: float = 5.0
    switch_limit_s: float = 3.0
    start_limit_s: float = 20.0
    stop_limit_s: float = 3.0
    ports: tuple[int, int] = (49152, 49407)
