"""Protected VMs in the lab: who ran when, whether a checkpoint is of one moment, the report."""

from __future__ import annotations

import os
import socket
import struct
from types import SimpleNamespace

import pytest

from vmmobility.drivers.hypervisor.checkpoint_store import CheckpointStore, Part
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.errors import LabError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import scenario as scenarios
from vmmobility.lab.counting import UdpRecord
from vmmobility.lab.fault_eyes import Eye, Eyes
from vmmobility.lab.guest.disk_records import SECTOR, first_acknowledged
from vmmobility.lab.guest_disks import disk_of
from vmmobility.lab.logbook import LogEvent
from vmmobility.lab.protection_assertions import runs_at, taken_over
from vmmobility.lab.protection_findings import protections_report
from vmmobility.lab.protections import Protection, Protections, StandbyLook, about, look_at
from vmmobility.lab.report_protections import ProtectionsReport, Spread
from vmmobility.lab.step_types import Assertion, LookAtStandby, Protect
from vmmobility.wire.values import VmKey

MS = 1_000_000
WHAT = Assertion("taken-over", 0.0, "vm1", "nve-2a")


def struck(at_ms=1000, kind="nve-1a dark"):
    return Protection("vm1", "nve-1a", "nve-2a", 3, 4, 0, kind, at_ms * MS, (at_ms + 5) * MS)


class Looker(Eyes):
    """Eyes that were shown these spans, and these consoles."""

    def __init__(self, folder, spans, said=None):
        super().__init__({}, folder)
        for number, (node, begin, end) in enumerate(spans):
            console = folder / f"{number}.log"
            console.write_text((said or {}).get(node, ""))
            eye = Eye(node, number, folder, socket.socket(), console)
            eye.sock.close()
            eye.spans.append([begin * MS, None if end is None else end * MS])
            self._eyes.append(eye)

    def running_at(self):
        return self.heard_at()


def run_of(tmp_path, spans, said=None, look=None, kind="nve-1a dark"):
    """A run whose VM was struck at 1000 ms, and of which that was seen."""
    found = Protections()
    found.all.append(struck(kind=kind))
    found.all[0].look = look
    lab = SimpleNamespace(
        fabric=fabrics.load_fabric(fabrics.find("two-dc-warm")),
        eyes=Looker(tmp_path, spans, said),
        daemons=SimpleNamespace(state_dir=lambda node: tmp_path / node),
        logbook=SimpleNamespace(events=list),
    )
    place = (lambda vm: "nve-2a") if spans[-1][0] == "nve-2a" else (lambda vm: "nve-1a")
    return SimpleNamespace(lab=lab, protections=found, place_of=place, number=1)


def told(*numbers):
    return "".join(f"diskd: {n} acknowledged\n" for n in numbers)


def test_one_after_the_other_is_not_twice():
    spans = [("nve-1a", 0, 400 * MS), ("nve-1a", 430 * MS, 1004 * MS), ("nve-2a", 3000 * MS, None)]
    found = about(spans, struck(), 9000 * MS)
    assert (found.primary_last_ns, found.standby_first_ns) == (1004 * MS, 3000 * MS)
    assert found.both_ms == 0


@pytest.mark.parametrize(
    ("primary", "both_ms"),
    [
        ([("nve-1a", 0, 3001 * MS)], 1),  # it stopped a millisecond too late
        ([("nve-1a", 0, None)], 6000),  # never
        ([("nve-1a", 0, 900 * MS), ("nve-1a", 5000 * MS, 5002 * MS)], 2),  # it came back to life
    ],
)
def test_an_overlap_of_any_kind_is_seen(primary, both_ms):
    found = about([*primary, ("nve-2a", 3000 * MS, None)], struck(), 9000 * MS)
    assert found.both_ms == both_ms


def test_a_standby_that_ran_before_the_strike_took_nothing_over():
    found = about([("nve-2a", 0, 500 * MS), ("nve-1a", 600 * MS, 1004 * MS)], struck(), 9000 * MS)
    assert found.standby_first_ns is None


def test_a_fail_over_is_right_only_if_memory_and_disk_are_of_one_moment(tmp_path):
    spans = [("nve-1a", 0, 1004), ("nve-2a", 3000, None)]
    look = StandbyLook(7, 90, ())

    def judged(first, look=look):
        said = {"nve-1a": told(99, 100), "nve-2a": told(first, first + 1)}
        return taken_over(run_of(tmp_path, spans, said, look), WHAT)

    assert [judged(first) for first in (90, 91)] == ["", ""]
    assert "its memory went on with 92" in judged(92)  # the disk is behind the memory
    assert "its memory went on with 80" in judged(80)  # the disk is ahead of it
    assert "1 records before 90 are not in" in judged(91, StandbyLook(7, 90, (44,)))
    mute = run_of(tmp_path, spans, {"nve-1a": told(100)}, look)
    assert taken_over(mute, WHAT) == "vm1 has written nothing at nve-2a yet"


def test_a_fail_over_is_judged_by_who_ran(tmp_path):
    both = [("nve-1a", 0, 3500), ("nve-2a", 3000, None)]
    assert taken_over(run_of(tmp_path, both), WHAT) == "vm1 ran at both for 500.0 ms"
    none = [("nve-1a", 0, 1004), ("nve-2a", 100, 200)]
    assert taken_over(run_of(tmp_path, none), WHAT) == "vm1 has not run at nve-2a"
    home = [("nve-1a", 0, None)]
    assert taken_over(run_of(tmp_path, home), WHAT) == "the manager binds vm1 to nve-1a"
    elsewhere = Assertion("taken-over", 0.0, "vm1", "nve-2b")
    assert taken_over(run_of(tmp_path, home), elsewhere) == "the standby of vm1 is at nve-2a"
    assert runs_at(run_of(tmp_path, both), WHAT) == ""
    assert runs_at(run_of(tmp_path, home), WHAT) == "it runs at nve-1a"


def event(node, name, at_ms, **fields):
    return LogEvent(at_ms * MS, node, name, "vm1", "", fields)


def test_of_light_vms_the_daemons_tell(tmp_path):
    run = run_of(tmp_path, [("nve-2a", 0, None)], kind="tor-1a--nve-1a cut")
    run.lab.fabric = fabrics.load_fabric(fabrics.find("two-dc-warm-light"))
    words = [
        event("nve-1a", "guest.fenced", 2600),
        event("nve-2a", "guest.resumed", 6000),
        event("nve-1a", "guest.unfenced", 7000),
    ]
    run.lab.logbook.events = lambda: words[:2]
    assert taken_over(run, WHAT) == ""
    run.lab.logbook.events = lambda: words
    assert taken_over(run, WHAT).startswith("vm1 ran at both for ")


def a_standby(tmp_path, last):
    """A store at nve-2a with one checkpoint, whose disk has records up to `last`."""
    vm = fabrics.load_fabric(fabrics.find("two-dc-warm")).vm("vm1")
    guests = tmp_path / "nve-2a" / "guests"
    definition = VmDefinition(VmKey(0, "vm1"), "qemu", (), disks=(disk_of(vm),))
    store = CheckpointStore(definition, guests / "standby", guests / "disks")
    store.open()
    disk = b"\0" * SECTOR + b"".join(record(number) for number in range(1, last + 1))
    octets = [disk]
    store.receive(
        1,
        None,
        [Part("memory", 0), Part("disk0", len(disk))],
        lambda most: octets.pop() if octets else b"",
        lambda: None,
    )
    return store


def record(number):
    head = b"vmmobDSK" + struct.pack("<Q", number)
    total = 1469598103934665603
    for octet in head:
        total = (total ^ octet) * 1099511628211 % (1 << 64)
    return (head + struct.pack("<Q", total)).ljust(SECTOR, bytes([number & 0xFF]))


def test_a_look_reads_the_standbys_disk_and_changes_nothing(tmp_path):
    store = a_standby(tmp_path, 5)
    run = run_of(tmp_path, [("nve-1a", 0, None)])
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert look_at(run, run.protections.of("vm1")) == StandbyLook(1, 5, ())
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    damaged = bytearray(store.image_of(0).read_bytes())
    damaged[3 * SECTOR + 9] ^= 1
    store.image_of(0).write_bytes(damaged)
    assert look_at(run, run.protections.of("vm1")) == StandbyLook(1, 5, (3,))


def test_a_look_waits_for_a_merge_and_refuses_what_was_taken_over(tmp_path):
    store = a_standby(tmp_path, 5)
    run = run_of(tmp_path, [("nve-1a", 0, None)])
    store.record.merge = "increment"
    store._write_record()
    assert look_at(run, run.protections.of("vm1")) is None
    store.record.merge, store.record.activated = "", True
    store._write_record()
    with pytest.raises(LabError, match="nve-2a has taken vm1 over"):
        look_at(run, run.protections.of("vm1"))
    os.remove(next((tmp_path / "nve-2a" / "guests" / "standby").rglob("standby.json")))
    with pytest.raises(LabError, match="nve-2a has no checkpoint of vm1"):
        look_at(run, run.protections.of("vm1"))


def test_the_report_has_the_figures(tmp_path):
    spans = [("nve-1a", 0, 1004), ("nve-2a", 3000, None)]
    said = {"nve-1a": told(100), "nve-2a": told(91)}
    run = run_of(tmp_path, spans, said, StandbyLook(2, 90, ()))
    words = [
        event("nve-1a", "guest.checkpoint", 300, ok=True, number=1, full=True, pause_ms=80.0,
              total_ms=600.0, memory_bytes=9, disk_bytes=5, age_ms=100),
        event("nve-2a", "guest.checkpoint-held", 290, number=1),
        event("nve-1a", "guest.checkpoint", 700, ok=True, number=2, full=False, pause_ms=40.0,
              total_ms=500.0, memory_bytes=9, disk_bytes=1, age_ms=200),
        event("nve-2a", "guest.checkpoint-held", 690, number=2),
        event("nve-1a", "guest.checkpoint", 900, ok=False, reason="full"),
    ]  # fmt: skip
    run.lab.logbook.events = lambda: words
    stream = UdpRecord({0: 900 * MS, 1: 1500 * MS, 2: 3050 * MS}, {0: [901 * MS], 2: [3060 * MS]})
    pair = SimpleNamespace(vm="vm1", correspondent="far")
    run.probes = SimpleNamespace(pairs=[pair], udp=lambda pair, version: stream)
    run.ended_ns = 4000 * MS
    report = protections_report(run)
    (row,) = report.as_json()["protections"]
    assert row["pause_ms"] == {"least": 40.0, "median": 60.0, "most": 80.0}
    assert (row["checkpoints"], row["failed"], row["whole"]) == (2, 1, 1)
    over = row["fail_over"]
    assert (over["checkpoint"], over["staleness_ms"]) == (2, 500.0)
    assert (over["primary_last_ms"], over["standby_first_ms"]) == (4.0, 2000.0)
    assert over["serving_ms"] == {"far ipv4": 2060.0, "far ipv6": 2060.0}
    assert over["records"] == {"at_strike": 100, "in_checkpoint": 90, "first_after": 91,
                               "missing": 0, "of_one_moment": True}  # fmt: skip
    text = "\n".join(report.lines())
    assert "2 checkpoints (1 whole, 1 came to nothing); pause min/p50/max 40.0 / 60.0" in text
    assert "from checkpoint 2, 500 ms old" in text
    assert ProtectionsReport().as_json() == {}


def test_a_spread_of_nothing_is_unknown():
    assert str(Spread.over([None])) == "-"


def test_the_first_word_of_a_console_counts():
    assert first_acknowledged(b"23 acknowledged\ndiskd: 24 acknowledged\n" + b"x") == 24
    assert first_acknowledged(b"") == 0


def test_the_steps_are_read_and_checked(tmp_path):
    path = tmp_path / "mine.toml"
    head = 'fabric = "{}"\n[[step]]\ndo = "protect"\nvm = "vm1"\nto = "nve-2a"\nlease_s = 4\n'
    more = '[[step]]\ndo = "look-at-standby"\nvm = "vm1"\n'
    path.write_text(head.format("two-dc-warm") + more)
    assert scenarios.load_scenario(path).steps == (
        Protect("vm1", "nve-2a", 5.0, 4.0),
        LookAtStandby("vm1"),
    )
    path.write_text(head.format("two-dc-warm-light") + more)
    with pytest.raises(LabError, match="vm1 writes no records"):
        scenarios.load_scenario(path)


def test_only_the_first_fault_strikes():
    found = Protections()
    found.all.append(Protection("vm1", "nve-1a", "nve-2a", 3, 4, 0))
    found.strike("nve-1a dark")
    found.struck()
    found.strike("later")
    first = found.of("vm1")
    assert first.strike == "nve-1a dark"
    assert 0 < first.struck_ns <= first.done_ns
    with pytest.raises(LabError, match="vm2 was not protected"):
        found.of("vm2")
