"""Packet sizes in the lab: records, phases, reports, and what scenarios say of them."""

from __future__ import annotations

import pytest

from vmmobility.errors import LabError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import scenario as scenarios
from vmmobility.lab.correspondents import Pair
from vmmobility.lab.counting import LATE_NS, Window
from vmmobility.lab.report_sizes import BulkReport, SizeError, SizesReport
from vmmobility.lab.size_probe import BULK_OCTETS, block
from vmmobility.lab.sizes import bulk_report, phases, read_sizes, silent, size_report
from vmmobility.lab.step_types import Assertion

PAIR = Pair("near", "vm1")
NODES = {"10.0.1.2": "nve-a"}
RECORD = """\
s,1,100,1500
r,1,101
b,16384,150
s,2,200,1500
e,2,201,1480,10.0.1.2
s,3,202,1480
r,3,203
s,4,204,1481
e,4,205,1480,10.0.1.2
b,32768,250
s,5,300,1480
b,49152,1250
s,6,310,14"""


@pytest.fixture
def record(tmp_path):
    (tmp_path / "vm1-ipv4.size").write_text(RECORD)
    return read_sizes(tmp_path / "vm1-ipv4.size")


def test_a_record_is_read_but_for_its_unfinished_line(record, tmp_path):
    assert record.sent == {1: (100, 1500), 2: (200, 1500), 3: (202, 1480), 4: (204, 1481),
                           5: (300, 1480)}  # fmt: skip
    assert record.echoed == {1, 3}
    assert record.errors == {2: (1480, "10.0.1.2"), 4: (1480, "10.0.1.2")}
    assert (len(record.bulk), record.breaks) == (3, 0)
    assert read_sizes(tmp_path / "none").sent == {}


def test_silence_counts_when_its_time_is_over(record):
    assert silent(record, Window(0, 1000), 1000) == 0
    assert silent(record, Window(0, 1000), 301 + LATE_NS) == 1
    assert silent(record, Window(0, 300), 301 + LATE_NS) == 0


def test_each_phase_has_what_was_sent_in_it(record):
    found = [
        size_report(phase, PAIR, 4, record, NODES, 301 + LATE_NS)
        for phase in phases(1, 7, (0, 150, 200, 250, 1000))
    ]
    assert [(one.phase, one.move, one.sent, one.echoed, one.told, one.silent, one.largest_octets)
            for one in found] == [
        ("before", 7, 1, 1, 0, 0, 1500),
        ("during", 7, 3, 1, 2, 0, 1480),
        ("after", 7, 1, 0, 0, 1, None),
    ]  # fmt: skip
    error = SizeError("fragmentation-needed", "10.0.1.2", "nve-a", 1480)
    assert [one.error for one in found] == [None, error, None]


def test_the_error_is_of_the_smallest_that_did_not_pass(tmp_path):
    path = tmp_path / "record"
    path.write_text("s,1,1,1400\nr,1,2\ns,2,3,1401\ne,2,4,1400,fd00::2\ns,3,5,1500\n"
                    "e,3,6,1460,fd00::1\ns,4,7,1300\ne,4,8,1280,fd00::9\n")  # fmt: skip
    (phase, *_) = phases(1, 1, (0, 10, 10, 10, 10))
    found = size_report(phase, PAIR, 6, read_sizes(path), {}, 10)
    assert found.error == SizeError("packet-too-big", "fd00::2", "", 1400)


def test_bulk_survives_unless_it_broke_or_was_mute(record, tmp_path):
    assert bulk_report(1, PAIR, 4, record) == BulkReport(
        1, "near", "vm1", "ipv4", 49152, True, 0.001
    )
    (tmp_path / "broken").write_text("b,1,1\nx,1,2\n")
    (tmp_path / "mute").write_text("s,1,1,1400\n")
    for name in ("broken", "mute"):
        assert not bulk_report(1, PAIR, 4, read_sizes(tmp_path / name)).survived


def test_the_octets_of_a_bulk_session_go_on_without_a_seam():
    whole = block(0, 3 * BULK_OCTETS)
    assert len(whole) == 3 * BULK_OCTETS
    for place in (0, 1, 250, 251, BULK_OCTETS):
        assert block(place, BULK_OCTETS) == whole[place : place + BULK_OCTETS]
    assert block(5, 1 << 16) == block(0, (1 << 16) + 5)[5:]


def test_the_report_says_it_to_programs_and_people(record):
    sizes = tuple(
        size_report(phase, PAIR, 4, record, NODES, 301 + LATE_NS)
        for phase in phases(1, 7, (0, 150, 200, 250, 1000))
    )
    report = SizesReport(sizes, (bulk_report(1, PAIR, 4, record),), 5, 1)
    data = (report + SizesReport(sent=2)).as_json()
    assert [row["phase"] for row in data["packet_sizes"]] == ["before", "during", "after"]
    assert data["packet_sizes"][1]["error"] == {
        "kind": "fragmentation-needed", "from": "10.0.1.2", "node": "nve-a", "mtu": 1480,
    }  # fmt: skip
    assert data["bulk"][0]["octets"] == 49152
    first, last = report.lines()
    assert "before 1500, during 1480, after -; told 1480 by 10.0.1.2 (nve-a)" in first
    assert "5, 1 without echo or error" in last
    assert SizesReport().lines() == []


HEAD = 'fabric = "three-racks-narrow"\n'
SIZE = (
    '[[step]]\ndo = "assert"\nwhat = "packet-size"\nvm = "vm1"\n'
    'phase = "{}"\nipv4 = {}\nipv6 = 1460\n'
)


GUEST = '[{name = "big", kind = "guest", home = "nve-a", addresses = ["10.1.0.9", "fd01::9"]}]'


def load(tmp_path, text):
    head = HEAD
    if '"big"' in text:
        (tmp_path / "net.toml").write_text(f'like = "three-racks-narrow"\nvm = {GUEST}\n')
        head = 'fabric = "net.toml"\n'
    (tmp_path / "mine.toml").write_text(head + text)
    return scenarios.load_scenario(tmp_path / "mine.toml")


def test_the_assertions_are_read(tmp_path):
    text = "packet_sizes = true\n" + SIZE.format("during", 1480)
    text += 'from = "near"\ntold_by = "nve-a"\n'
    text += '[[step]]\ndo = "assert"\nwhat = "no-silent-drop"\nmax = 3\n'
    text += '[[step]]\ndo = "wait"\nuntil = "no-broken-bulk"\n'
    text += '[[step]]\ndo = "assert"\nwhat = "too-big-counted"\nvm = "vm1"\nnode = "nve-a"\n'
    found = load(tmp_path, text)
    assert found.packet_sizes
    assert found.steps == (
        Assertion("packet-size", 30.0, "vm1", "nve-a", source="near", state="during",
                  octets=(1480, 1460)),
        Assertion("no-silent-drop", 0.0, maximum=3),
        Assertion("no-broken-bulk", 30.0),
        Assertion("too-big-counted", 0.0, "vm1", "nve-a"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        (SIZE.format("after", 1480), "no size is tried", "packet_sizes"),
        ("packet_sizes = true\n" + SIZE.format("later", 1480), "`phase` is 'later'", "during"),
        ("packet_sizes = true\n" + SIZE.format("after", '"all"'), "`ipv4` is 'all'", "number"),
        (
            'packet_sizes = true\n[[probe]]\nfrom = "near"\nto = "big"\n',
            "big has no service",
            "netns",
        ),
        ("packet_sizes = 1\n", "`packet_sizes` is 1", "true or false"),
    ],
)
def test_mistakes_name_the_place_and_the_remedy(tmp_path, text, message, remedy):
    with pytest.raises(LabError) as caught:
        load(tmp_path, text)
    assert "mine.toml" in caught.value.message
    assert message in caught.value.message
    assert remedy in caught.value.remedy


def test_a_link_can_have_an_mtu_of_its_own():
    fabric = fabrics.load_fabric(fabrics.find("three-racks-narrow"))
    mtus = {link.name: link.mtu or fabric.mtu for link in fabric.links}
    assert (mtus["core--rack-c"], mtus["core--rack-b"]) == (1400, 1500)
    assert (fabric.mtu_at("rack-c"), fabric.mtu_at("near")) == (1500, 1500)


@pytest.mark.parametrize("mtu", [0, 1279, 65536])
def test_an_mtu_that_no_link_can_have_is_refused(mtu):
    data = {"router": [{"name": "r"}], "correspondent": [{"name": "c"}],
            "link": [{"nodes": ["r", "c"], "mtu": mtu}]}  # fmt: skip
    with pytest.raises(LabError, match=f"mtu {mtu}") as caught:
        fabrics.parse_fabric(data, "f.toml")
    assert "1280" in caught.value.remedy
