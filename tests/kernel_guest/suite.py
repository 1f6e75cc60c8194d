"""The tunnel suite inside Debian's own kernel: which tests, run how, and what must come of it.

Inside, CI=true and VMMOB_EXPECT_KERNEL_TUNNELS=1 hold: a skip is a failure.  Not here: the guest
(machine.py).
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.kernel_guest.machine import CLONE, OUT_INSIDE, Ended, Hear, run_in_guest

# Of each promise one test, in some minutes of two emulated CPUs; `make test-all` runs the whole.
CONTRACT = "tests/contract/test_dataplane"
QUICK = (
    f"{CONTRACT}_guards.py::test_what_is_for_the_nve_itself_does_not_come_out_of_a_tunnel",
    f"{CONTRACT}_loops.py::test_a_host_route_is_back_after_its_link",
    f"{CONTRACT}_mtu.py::test_what_fits_passes_and_one_octet_more_is_told",
    f"{CONTRACT}_outside_packets.py::test_the_guard_holds_whatever_routes_say",
    f"{CONTRACT}_outside_packets.py::test_flushed_nftables_open_no_tunnel_to_the_outside",
    f"{CONTRACT}_redirect.py",
    f"{CONTRACT}_tunnels.py",
    "tests/lab/test_lab_tunnels.py",
)
# By parameter: "kernel" alone would take whatever speaks of a kernel in its name, of any back end.
CHOICE = "[kernel or -kernel or kernel_tunnels or kernels_tunnels or auto_takes"
QUICK_CHOICE = f"({CHOICE}) and not another_back_end and not ten_moves"
TEST_LIMIT_S = 900  # of one test: with other work on the machine it may need many times its time
ENVIRONMENT = {"CI": "true", "VMMOB_EXPECT_KERNEL_TUNNELS": "1"}
_CLOSING = re.compile(r"^=+ .*\b(passed|failed|error|errors|no tests ran)\b.* in [0-9.]+s")


@dataclass(frozen=True, slots=True)
class Results:
    """What pytest inside has said and written.

    ran:     names of the tests that were executed, as file::name[parameters]
    skipped: of those that were not
    closing: pytest's closing line
    """

    ended: Ended
    ran: tuple[str, ...]
    skipped: tuple[str, ...]
    closing: str

    @property
    def with_kernel_tunnels(self) -> list[str]:
        """Those that a kernel's own tunnels were the subject of, by their parameter."""
        return [
            name for name in self.ran if "kernel" in name.partition("[")[2].strip("]").split("-")
        ]


def run_suite(paths: Sequence[str], choice: str, out: Path, limit_s: float, hear: Hear) -> Results:
    """Boot the guest once and run these tests there; the results are in `out` afterwards.

    Raises GuestFailed where it did not come to its end.
    """
    interpreter = CLONE / ".venv/bin/python"
    command = [
        *(str(interpreter if interpreter.exists() else sys.executable), "-m", "pytest"),
        *("--color=no", "-v", "-p", "no:cacheprovider", "-o", f"timeout={TEST_LIMIT_S}"),
        *("--junit-xml", f"{OUT_INSIDE}/junit.xml", "-k", choice, *paths),
    ]
    hear(f"in the kernel guest: {shlex.join(command)}")
    ended = run_in_guest(command, out, limit_s, ENVIRONMENT, hear)
    return read_results(out / "junit.xml", ended)


def read_results(junit: Path, ended: Ended) -> Results:
    """From pytest's file; AssertionError where it has written none, or no closing line."""
    assert junit.exists(), f"pytest has written no results, status {ended.status}"
    ran: list[str] = []
    skipped: list[str] = []
    for case in ElementTree.parse(junit).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        (skipped if case.find("skipped") is not None else ran).append(name)
    closing = [line for line in ended.console.splitlines() if _CLOSING.match(line)]
    assert closing, "pytest has not said how it ended"
    return Results(ended, tuple(ran), tuple(skipped), closing[-1].strip("= "))
