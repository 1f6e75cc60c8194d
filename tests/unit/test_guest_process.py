"""Whether a process is a guest's QEMU, by /proc, while it comes to be and when it has ended."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from vmmobility.drivers.hypervisor.process import GuestFolder, is_ours
from vmmobility.wire.values import VmKey

STARTS, LOOK_S = 40, 0.02


def test_a_program_that_hands_over_to_another_is_ours_all_the_while(tmp_path: Path):
    folder = GuestFolder.of(tmp_path, VmKey(0, "vm1"))
    wrapper = tmp_path / "qemu"
    wrapper.write_text('#!/bin/sh\nexec /bin/sh -c "read line" "$@"\n')
    wrapper.chmod(0o755)
    for _ in range(STARTS):
        command = [wrapper, folder.pid_file]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            end = time.monotonic() + LOOK_S
            while time.monotonic() < end:
                assert is_ours(folder, process.pid)
            process.kill()
            process.wait()
        assert not is_ours(folder, process.pid)


def test_one_that_has_ended_and_is_not_reaped_yet_is_none(tmp_path: Path):
    folder = GuestFolder.of(tmp_path, VmKey(0, "vm1"))
    with subprocess.Popen(["/bin/true", folder.pid_file]) as process:
        deadline = time.monotonic() + 5.0
        while is_ours(folder, process.pid):
            assert time.monotonic() < deadline
