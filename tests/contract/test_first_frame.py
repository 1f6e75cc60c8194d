"""The frame for nobody that a waiting QEMU reads before the guest's memory has come."""

from __future__ import annotations

import os
import select

import pytest

from tests.contract.namespaces import Namespace
from vmmobility.drivers.hypervisor.first_frame import ETHER_TYPE, LEAST, spend_first_frames
from vmmobility.drivers.hypervisor.light_tap import open_tap

pytestmark = pytest.mark.netns

MAC = bytes.fromhex("525400000001")


def test_it_is_the_first_in_the_tap_and_no_guest_s() -> None:
    space = Namespace("first")
    try:
        space.ip("tuntap", "add", "vmt0", "mode", "tap")
        space.run("sysctl", "-qw", "net.ipv6.conf.vmt0.disable_ipv6=1")  # else MLD comes first
        space.ip("link", "set", "vmt0", "up")
        tap = space.call(open_tap, "vmt0")
        space.call(spend_first_frames, [("vmt0", MAC)])
        assert select.select([tap], [], [], 5.0)[0]
        frame = os.read(tap, 2048)
        os.close(tap)
        assert (frame[:6], frame[12:14]) == (MAC, ETHER_TYPE.to_bytes(2, "big"))
        assert len(frame) == LEAST
    finally:
        space.close()


def test_a_tap_that_is_not_there_or_down_is_no_error() -> None:
    space = Namespace("none")
    try:
        space.ip("tuntap", "add", "vmt0", "mode", "tap")
        space.call(spend_first_frames, [("vmt0", MAC), ("vmt1", MAC)])
    finally:
        space.close()
