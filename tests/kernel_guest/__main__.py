"""`python -m tests.kernel_guest COMMAND …`: a command in Debian's own kernel, its output live.

Its exit status is the command's; 125 where the guest itself failed.  Not here: how (machine.py).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.kernel_guest.machine import GuestFailed, run_in_guest
from vmmobility.errors import VmMobilityError
from vmmobility.lab.runner import interruptible

GUEST_FAILED = 125
PASSED_ON = ("CI", "PYTEST_ADDOPTS", "VMMOB_EXPECT_KERNEL_TUNNELS")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernel_guest", description=__doc__)
    parser.add_argument("--limit", type=float, default=600.0, metavar="S", help="of the whole")
    parser.add_argument("--out", type=Path, help="what is written to $KERNEL_GUEST_OUT comes here")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if not given.command:
        parser.error("no command")
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    try:
        with interruptible(), tempfile.TemporaryDirectory(prefix="vmkg-out") as folder:
            out = given.out or Path(folder)
            out.mkdir(parents=True, exist_ok=True)
            ended = run_in_guest(
                given.command, out, given.limit, environment, hear=lambda line: print(line)
            )
    except (GuestFailed, VmMobilityError) as error:
        print(f"error: {error}", file=sys.stderr)
        return GUEST_FAILED
    except KeyboardInterrupt:
        return 130
    return ended.status


if __name__ == "__main__":
    sys.exit(main())
