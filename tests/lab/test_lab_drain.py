"""A host is emptied by the real daemons: light VMs lose nothing, the report has time and number."""

from __future__ import annotations

import pytest

from tests.lab.lab_command import Lab

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.timeout(600)]


def check_drain(report, vms: int, parallel: int) -> None:
    [drain] = report["drains"]
    assert (drain["state"], drain["vms"], drain["moved"], drain["failed"]) == ("done", vms, vms, 0)
    assert 1 < drain["most_at_once"] <= parallel
    assert drain["took_s"] > 0
    assert drain["reasons"] == []


def test_a_host_with_a_few_light_vms(lab: Lab) -> None:
    report = lab.run("drain-few")
    check_drain(report, 6, 3)
    streams = report["summary"]["streams"]
    assert (streams["lost"], streams["tcp_survived"]) == (0, 4)


@pytest.mark.slow
def test_a_host_with_two_hundred_light_vms(lab: Lab) -> None:
    report = lab.run("drain-light")
    check_drain(report, 200, 8)
    streams = report["summary"]["streams"]
    assert (streams["lost"], streams["tcp_survived"]) == (0, 10)


@pytest.mark.slow
@pytest.mark.qemu
def test_a_host_with_eight_guests(lab: Lab) -> None:
    report = lab.run("drain-guests")
    check_drain(report, 8, 2)
    assert report["summary"]["streams"]["tcp_survived"] == 16
