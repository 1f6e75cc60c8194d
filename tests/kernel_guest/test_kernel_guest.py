"""The kernel guest itself: what a command sees, and that no failure passes for an end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel_guest.machine import CLONE, GuestFailed, run_in_guest
from tests.kernel_guest.suite import read_results

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(400)]

LIMIT_S = 300.0
Traces = Callable[[], list[str]]
SIGHT = """
echo "in $(pwd)"
test -f pyproject.toml && echo "the clone is here"
"$1" -c 'import sys, vmmobility; print("code of", vmmobility.__file__)'
ip link add one type ipip local 192.0.2.1 remote 192.0.2.2 && echo "ipip"
ip link add two type ip6tnl local 2001:db8::1 remote 2001:db8::2 && echo "ip6tnl"
nft add table inet proof && echo "nftables"
echo "is $WORD"
touch written-in-the-guest
echo kept > "$KERNEL_GUEST_OUT/result"
exit 7
"""


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What is left of guests that this test has started: processes, and files in their folders."""
    with tempfile.TemporaryDirectory(prefix="vmkt") as name:  # short: it holds sockets
        monkeypatch.setattr(tempfile, "tempdir", name)

        def found() -> list[str]:
            shown = subprocess.run(
                ["ps", "axwwo", "args"], capture_output=True, text=True, check=True
            )
            processes = [line for line in shown.stdout.splitlines() if f"{name}/" in line]
            return processes + [path.name for path in Path(name).iterdir()]

        yield found


def test_a_command_sees_the_machine_and_the_kernels_tunnels(tmp_path: Path, traces: Traces) -> None:
    lines: list[str] = []
    command = ["sh", "-c", SIGHT, "sh", sys.executable]
    ended = run_in_guest(command, tmp_path, LIMIT_S, {"WORD": "it's two words"}, lines.append)
    assert ended.status == 7, ended.console
    for line in (
        f"in {CLONE}", "the clone is here", f"code of {CLONE}/src/vmmobility/__init__.py",
        "ipip", "ip6tnl", "nftables", "is it's two words",
    ):  # fmt: skip
        assert line in lines, ended.console
    assert (tmp_path / "result").read_text() == "kept\n"
    with pytest.raises(AssertionError, match="has written no results"):
        read_results(tmp_path / "junit.xml", ended)
    assert not (CLONE / "written-in-the-guest").exists()
    assert traces() == []


@pytest.mark.parametrize(
    ("command", "limit_s", "said"),
    [
        ("echo c > /proc/sysrq-trigger", LIMIT_S, "sysrq triggered crash"),
        ("sleep 1000", 10.0, "has not ended within 10 s"),
        pytest.param(
            "head -c 3G /dev/zero > /dev/shm/much; tail /dev/zero",
            LIMIT_S,
            "out of memory",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "busybox poweroff -f", LIMIT_S, "ended before its command did", marks=pytest.mark.slow
        ),
    ],
    ids=["panic", "hang", "out of memory", "power off"],
)
def test_a_guest_that_does_not_come_to_its_end_has_failed(
    tmp_path: Path, traces: Traces, command: str, limit_s: float, said: str
) -> None:
    (tmp_path / "status").write_text("0\n")  # of an earlier run
    with pytest.raises(GuestFailed) as caught:
        run_in_guest(["sh", "-c", command], tmp_path, limit_s)
    assert said.lower() in str(caught.value).lower()
    assert traces() == []
