"""What this machine can run, and the gate that keeps a skip from passing unseen in CI.

A marked test (netns, qemu, lab) is skipped, with the remedy, where the machine lacks what it needs.
With CI=true a skip fails the run unless its reason begins with a line of expected_skips.txt, and so
does a run in which no test was executed.

Two processes can share the work (`make test`): each gets one part of the tests of the machine, and
then what is pure, a module at a time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

EXPECTED_SKIPS = Path(__file__).with_name("expected_skips.txt")

# How long an example takes, or is sought for, says how busy the machine is, and nothing else.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@cache
def lack_of_namespaces() -> str:
    """What keeps this process from making network namespaces; empty if nothing does."""
    if os.geteuid() != 0:
        return "needs root for network namespaces: run as root or with sudo"
    for program in ("ip", "nft", "unshare"):
        if shutil.which(program) is None:
            return f"needs the program {program}: run make setup"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        return "needs network namespaces: this kernel or container forbids them"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun"
    return ""


@cache
def lack_of_qemu() -> str:
    """What keeps this machine from running guests; empty if nothing does (KVM is not needed)."""
    for program in ("qemu-system-x86_64", "busybox", "gcc"):
        if shutil.which(program) is None:
            return f"needs the program {program}: run make setup"
    return ""


OF_MACHINE = (("tests/kernel_guest/", "tests/lab/"), ("tests/contract/", "tests/daemon/"))
"""Tests of the machine itself, in two parts that do not meet; in a part one follows the other."""
LACKS = {"netns": [lack_of_namespaces], "qemu": [lack_of_qemu], "lab": [lack_of_namespaces]}


def scope_of(nodeid: str) -> str:
    """What is given to one process as a piece: a part of the machine's tests, else a module's."""
    module = nodeid.partition("::")[0]
    parts = (part for part in OF_MACHINE if module.startswith(part))
    return next((part[0] for part in parts), module)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the work: the long pieces first, in the order given here."""
    if hasattr(config, "workerinput"):
        places = [place for part in OF_MACHINE for place in part]
        rank = {place: number for number, place in enumerate(places)}
        items.sort(
            key=lambda item: next(
                (n for place, n in rank.items() if item.nodeid.startswith(place)), len(places)
            )
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # by their number of tests
    made = LoadScopeScheduling(config, log)
    made._split_scope = scope_of
    return made


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, probes in LACKS.items():
        if item.get_closest_marker(marker) is not None:
            for lack in filter(None, (probe() for probe in probes)):
                pytest.skip(lack)


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """A skip's reason: the third part of (path, line, 'Skipped: reason')."""
    where = report.longrepr
    text = where[2] if isinstance(where, tuple) else str(where)
    return text.removeprefix("Skipped: ")


def unexpected_skips(config: pytest.Config) -> list[str]:
    """`test: reason` of each skip that expected_skips.txt does not name."""
    lines = EXPECTED_SKIPS.read_text(encoding="utf-8").splitlines()
    expected = tuple(line for line in lines if line.strip() and not line.startswith("#"))
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    reasons = [(report.nodeid, skip_reason(report)) for report in skipped]
    return [f"{test}: {reason}" for test, reason in reasons if not reason.startswith(expected)]


def is_gate(config: pytest.Config) -> bool:
    """Only CI is strict, and only the process that sees all results (not an xdist worker)."""
    return os.environ.get("CI") == "true" and not hasattr(config, "workerinput")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not is_gate(session.config) or session.exitstatus != pytest.ExitCode.OK:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if unexpected_skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    elif reporter and not reporter.stats.get("passed") and not reporter.stats.get("xfailed"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if getattr(report, "when", "") == "call":
                    terminalreporter.write_line(f"{name}: {value}")
    skips = unexpected_skips(config) if is_gate(config) else []
    if skips:
        terminalreporter.section("unexpected skips (CI fails; see tests/expected_skips.txt)")
        for line in skips:
            terminalreporter.write_line(line)
