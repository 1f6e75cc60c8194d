"""Guests that others run, what only QEMU shows: broken moves, hung processes, a whole guest."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from pathlib import Path

import pytest

from tests.contract.hand_hosts import INTERFACE, VM, Pair, QemuHost, Run, play
from tests.contract.waiting import until
from vmmobility.drivers.hypervisor.external import ExternalHypervisor
from vmmobility.drivers.hypervisor.interface import GuestEvent
from vmmobility.engine.dataplane import port_name
from vmmobility.errors import HypervisorError
from vmmobility.lab import workdir
from vmmobility.lab.guest.image import guest_image, kernel_arguments
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey

pytestmark = [pytest.mark.qemu]


@pytest.fixture
def qemus(tmp_path: Path) -> Run:
    return lambda test: play(QemuHost, tmp_path, test)


def test_a_source_that_is_ended_at_once_has_departed_first(qemus: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        await source.boot()
        await destination.hands.await_copy()
        await source.hands.migrate(destination.hands)
        await source.hands.kill()  # as virsh does
        await source.next(GuestEvent.DEPARTED)
        assert (await source.next(GuestEvent.GONE))["life"] == "departed"
        await destination.next(GuestEvent.ARRIVED)

    qemus(scenario)


def test_a_failed_move_reports_nothing_but_the_lost_destination(qemus: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        hands = source.hands
        assert isinstance(hands, QemuHost)
        await source.boot()
        await destination.hands.await_copy()
        await destination.quiet()
        await hands.say("migrate-set-parameters", **{"max-bandwidth": 1 << 10})
        assert isinstance(destination.hands, QemuHost)
        await hands.say("migrate", uri=f"unix:{destination.hands.memory}")
        await destination.hands.kill()
        assert (await destination.next(GuestEvent.GONE))["life"] == "held"
        await until(lambda: hands.say("query-migrate"), lambda found: found["status"] == "failed")
        await source.quiet()
        assert await source.life() is GuestLife.RUNNING

    qemus(scenario)


def test_a_guest_that_is_being_handed_over_is_held(qemus: Run) -> None:
    async def scenario(pair: Pair) -> None:
        source, destination = pair.source, pair.destination
        hands = source.hands
        assert isinstance(hands, QemuHost)
        assert isinstance(destination.hands, QemuHost)
        await source.boot()
        await destination.hands.await_copy()
        state = [{"capability": "pause-before-switchover", "state": True}]
        await hands.say("migrate-set-capabilities", capabilities=state)
        await hands.say("migrate", uri=f"unix:{destination.hands.memory}")
        await until(hands.status, lambda state: state != "running")
        assert await source.life() is GuestLife.HELD
        with pytest.raises(HypervisorError, match="finish-migrate"):
            await source.hypervisor.resume(VM)
        question = asyncio.get_running_loop().create_task(source.life())
        await hands.say("migrate-continue", state="pre-switchover")
        assert await question is GuestLife.DEPARTED, "a question awaits the outcome"
        await source.next(GuestEvent.DEPARTED)
        await destination.next(GuestEvent.ARRIVED)

    qemus(scenario)


def test_a_qemu_that_hangs_is_neither_gone_nor_asked_without_end(qemus: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        assert isinstance(node.hands, QemuHost)
        await node.boot()
        node.hands.signal(signal.SIGSTOP)
        with pytest.raises(HypervisorError, match="not answer"):
            await node.life()
        with pytest.raises(HypervisorError, match="not answer"):
            await node.hypervisor.stop(VM)
        with pytest.raises(HypervisorError, match="not answer"):
            await node.restart()
        assert node.reports.empty()
        await until(node.noted, bool)
        node.hands.signal(signal.SIGCONT)
        await node.next(GuestEvent.ARRIVED)
        assert await node.life() is GuestLife.RUNNING
        assert {note["event"] for note in node.notes} == {"guest.unclear", "guest.clear"}
        node.hands.signal(signal.SIGSTOP)
        node.hands.signal(signal.SIGKILL)
        await node.next(GuestEvent.GONE)

    qemus(scenario)


def test_a_qemu_whose_monitors_name_was_removed_is_not_gone(qemus: Run) -> None:
    async def scenario(pair: Pair) -> None:
        node = pair.source
        hands = node.hands
        assert isinstance(hands, QemuHost)
        await node.boot()
        elsewhere = hands.qmp.with_name("moved")
        hands.qmp.rename(elsewhere)
        assert await node.life() is GuestLife.RUNNING  # the connection holds
        assert isinstance(node.hypervisor, ExternalHypervisor)
        await node.hypervisor._guests[VM]._hang_up()
        with pytest.raises(HypervisorError, match=f"QEMU {hands.pid} lives"):
            await node.life()
        elsewhere.rename(hands.qmp)
        assert await node.life() is GuestLife.RUNNING
        await node.quiet()

    qemus(scenario)


@pytest.mark.netns
def test_a_whole_guest_on_its_taps_is_moved_by_hand(tmp_path: Path) -> None:
    """The command line of the operator's guide; on one machine the taps' names must differ."""
    image = guest_image(workdir.cache())
    taps = [port_name(VmKey(0, f"{tmp_path.name}{end}"), 0) for end in "ab"]

    def host(folder: Path) -> QemuHost:
        tap, console = taps[folder.name == "b"], folder / "console.log"
        words = ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-cpu", "max"]
        words += ["-append", kernel_arguments([INTERFACE]), "-serial", f"file:{console}"]
        words += ["-netdev", f"tap,id=net0,ifname={tap},script=no,downscript=no"]
        device = f"virtio-net-pci,netdev=net0,mac={INTERFACE.mac_text},romfile="
        return QemuHost(folder, [*words, "-device", device])

    async def scenario(pair: Pair) -> None:
        await pair.source.boot()
        console = tmp_path / "a" / "console.log"
        await until(lambda: asyncio.to_thread(console.read_bytes), lambda text: b"init: up" in text)
        await pair.destination.hands.await_copy()
        await pair.source.hands.migrate(pair.destination.hands)
        departed = await pair.source.next(GuestEvent.DEPARTED)
        assert {"total_ms", "downtime_ms", "setup_ms"} <= departed.keys()
        assert await pair.destination.next(GuestEvent.ARRIVED) == {"migrated": True}
        await pair.destination.hypervisor.announce(VM)
        await pair.source.hands.cont()
        await pair.source.next(GuestEvent.ARRIVED)
        for node in (pair.source, pair.destination):
            await node.hands.kill()
            await node.next(GuestEvent.GONE)

    for tap in taps:
        subprocess.run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], check=True)
    try:
        play(host, tmp_path, scenario)
    finally:
        for tap in taps:
            subprocess.run(["ip", "link", "del", tap], check=True)
