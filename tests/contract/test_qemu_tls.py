"""Moves by TLS between real QEMUs: nothing readable passes, and who is not believed moves nothing.

That all else holds under TLS, too, is shown by the contracts' own tests (kind "qemu-tls").
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.disk_machines import (
    SIZE_MIB,
    USUAL,
    Machines,
    Run,
    ended,
    make_image,
    move,
    names,
)
from tests.contract.hypervisor_nodes import LOOPBACK, VM, Pair, qemu_node
from tests.contract.recording_relay import RecordingRelay
from tests.contract.waiting import until_true
from tools.make_stream_certificates import Authority
from vmmobility.drivers.hypervisor.interface import Disk, GuestEvent
from vmmobility.errors import HypervisorError

pytestmark = [pytest.mark.qemu, pytest.mark.netns]

RELAY = "127.0.0.2"
DISK = Disk("vm.img", "raw", SIZE_MIB)
ON_DISK = bytes([7]) * 64  # what make_image() fills it with
IN_MEMORY = b"Linux version"


def pair_of(machines: Machines, source: Path | None, destination: Path | None) -> Pair:
    """A pair of nodes, each with certificates of its own, or none."""
    pair = machines.pair(DISK)
    made = zip((pair.source, pair.destination), "ab", (source, destination), strict=True)
    pair.source, pair.destination = (
        qemu_node(node.port, machines.folder / end, replace(USUAL, tls=tls))
        for node, end, tls in made
    )
    return pair


@pytest.mark.parametrize("secured", [False, True])
def test_only_by_tls_nothing_of_memory_and_disk_can_be_read(
    disk_run: Run, tmp_path: Path, secured: bool
) -> None:
    tls = Authority(tmp_path / "ca").issue(tmp_path / "tls", [LOOPBACK, RELAY])

    async def scenario(machines: Machines) -> None:
        relay = RecordingRelay(RELAY, LOOPBACK, {ON_DISK, IN_MEMORY})
        settings = replace(USUAL, ports=await relay.open(), tls=tls if secured else None)
        pair = machines.pair(DISK, settings)
        source, destination = pair.source, pair.destination
        make_image(machines.image("a", DISK), DISK.format, filled_mib=8)
        await pair.start()
        await machines.writes("a")
        _, port = await pair.prepare()
        await source.hypervisor.copy_out(VM, RELAY, port)
        await source.next(GuestEvent.CONVERGED)
        await source.hypervisor.switch_over(VM)
        await source.next(GuestEvent.ABOUT_TO_STOP)
        await source.hypervisor.proceed(VM)
        await source.next(GuestEvent.STOPPED)
        await source.next(GuestEvent.COMPLETED)
        await destination.next(GuestEvent.RESUMED)
        await source.hypervisor.stop(VM)
        await machines.end_soundly(pair, "b")
        relay.close()
        assert relay.octets > 16 << 20
        assert relay.readable == (set() if secured else {ON_DISK, IN_MEMORY})

    disk_run(scenario)


def test_who_is_not_believed_moves_nothing_and_the_guest_runs_on(
    disk_run: Run, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    ours = authority.issue(tmp_path / "ours", [LOOPBACK])
    theirs = Authority(tmp_path / "other").issue(tmp_path / "theirs", [LOOPBACK])

    async def scenario(machines: Machines) -> None:
        make_image(machines.image("a", DISK), DISK.format)
        pair = pair_of(machines, ours, theirs)
        await pair.start()
        source, destination = pair.source, pair.destination
        for reason, far, near in (
            (r"is not believed: .*ours/ca-cert.pem", theirs, ours),
            (r"TLS is wanted here .*at both ends", ours, None),
            (r"does not speak TLS: .*at both ends", None, ours),
        ):
            await source.hypervisor.close()
            await destination.hypervisor.close()
            pair = pair_of(machines, near, far)
            source, destination = pair.source, pair.destination
            await source.hypervisor.adopt([pair.definition])
            at = await pair.prepare()
            with pytest.raises(HypervisorError, match=reason):
                await source.hypervisor.copy_out(VM, *at)
            await destination.hypervisor.cancel(VM)
            assert names(machines.folder / "b/disks") == set()
            await machines.writes("a")
        # What was wrong is put right while the daemons run: the next move goes.
        await source.hypervisor.close()
        await destination.hypervisor.close()
        pair = pair_of(machines, ours, theirs)
        await pair.source.hypervisor.adopt([pair.definition])
        authority.issue(theirs, [LOOPBACK])
        await move(pair.source, pair.destination, pair)
        await machines.end_soundly(pair, "b")

    disk_run(scenario)


def test_a_copy_of_memory_in_the_clear_is_refused_with_the_reason(
    disk_run: Run, tmp_path: Path
) -> None:
    """Without disks nothing is said before the memory comes."""
    tls = Authority(tmp_path / "ca").issue(tmp_path / "tls", [LOOPBACK])

    async def scenario(machines: Machines) -> None:
        pair = pair_of(machines, None, tls)
        pair.definition = replace(pair.definition, disks=())
        source, destination = pair.source, pair.destination
        await pair.start()
        await until_true(source.has_booted)
        await source.hypervisor.copy_out(VM, *await pair.prepare())
        failed = await source.next(GuestEvent.FAILED)
        assert failed.detail["running"] is True
        assert "TLS is wanted here" in failed.detail["reason"]
        assert await pair.runs_at(source)
        assert destination.reports.empty()  # whoever was refused has ended nothing there
        await ended(pair)

    disk_run(scenario)
