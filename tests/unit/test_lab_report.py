"""From events to measures, and from values to JSON, text and HTML."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from rich.console import Console

from vmmobility.lab import measures, report
from vmmobility.lab.counting import UdpRecord, Window, first_echo_after
from vmmobility.lab.daemons import to_toml
from vmmobility.lab.logbook import Logbook, parse
from vmmobility.lab.moments import GapSplit, moments, split_gap
from vmmobility.lab.narrator import Narrator
from vmmobility.lab.report_html import html
from vmmobility.lab.report_text import print_report
from vmmobility.lab.route_recorder import parse_line, spans
from vmmobility.lab.soundness import spins

MS = 1_000_000
FACTS = measures.MoveFacts("vm1", "nve-a", "nve-b", Window(0, 10_000 * MS))


def line(at_ms, node, event, **fields):
    text = {"ts_ns": round(at_ms * MS), "node": node, "event": event, "vm": "vm1", **fields}
    return json.dumps(text).encode()


LINES = [
    line(1, "manager", "move.requested"),
    line(30, "manager", "move.prepared", to="nve-b"),
    line(700, "nve-a", "forwarding", forwarding="redirect", target="nve-b"),
    line(720, "nve-a", "guest.stopped", at_ns=701 * MS),
    line(760, "nve-a", "guest.completed", at_ns=750 * MS, downtime_ms=12.5, total_ms=690),
    line(755, "nve-b", "guest.resumed", at_ns=731 * MS),
    line(757, "nve-b", "queue", queue_peak=17),
    line(740, "manager", "move.registered"),
    line(745, "manager", "move.redirected"),
    line(746, "manager", "move.done"),
]


def events():
    found = [parse(text, "?") for text in LINES]
    return measures.of_move([event for event in found if event is not None], FACTS)


def sample():
    mine = events()
    times: dict[str, Any] = {**measures.guest(mine, FACTS)}
    probes = (
        report.ProbeReport("near", "ipv4", 500, 0, 0, 41.5, 11.5, 690.0),
        report.ProbeReport(
            "near", "ipv6", 500, 3, 1, 44.0, 14.0, 697.0, 10.0, GapSplit(44.0, 1.0, 30.0, 10.0, 3.0)
        ),
    )
    routes = (report.RouteReport("nve-a", "ipv4", "tunnel", "10.1.0.5 dev <tun>", 700.0, None),)
    move = report.MoveReport(
        1, 1, "vm1", "nve-a", "nve-b", "hot", True, "", "ok", 0, 3000.0, probes,
        report.TcpReport(2, 2, 55.0),
        report.GuestReport(cold_ms=12.0, sound=True, bad_pages=0, memory_pages=64, cpu=0.2,
                           cpu_before=0.1, **times),
        report.ControlReport(**measures.control(mine, FACTS)),
        measures.queue_peak(mine, FACTS), 40, tuple(measures.phases(mine, 0)), routes, {"x": 1},
    )  # fmt: skip
    return report.Report("demo", "A demo", "three-racks", 1, 0, 12.0, (), (), (move,), ())


def test_measures_come_from_the_events_own_times():
    mine = events()
    assert measures.guest(mine, FACTS) == {
        "downtime_ms": 12.5, "stop_to_resume_ms": 30.0, "total_ms": 690.0,
    }  # fmt: skip
    assert measures.control(mine, FACTS) == {
        "registered_ms": 9.0, "redirected_ms": 5.0, "redirect_to_stop_ms": 1.0,
    }  # fmt: skip
    assert measures.queue_peak(mine, FACTS) == 17
    assert measures.phases(mine, 0)[2] == {
        "name": "forwarding redirect", "node": "nve-a", "at_ms": 700.0,
    }  # fmt: skip


def test_measures_of_a_failed_move_are_unknown_not_wrong():
    assert measures.control([], FACTS)["registered_ms"] is None
    assert measures.queue_peak([], FACTS) is None


def test_relayed_counts_growth_and_begins_again_after_a_reset():
    polls = [(1, {"a": 5}), (2, {"a": 9}), (3, {"a": 9, "b": 4}), (4, {"a": 2, "b": 6})]
    assert measures.relayed(polls, Window(2, 10)) == 4 + 4 + 2 + 2
    assert measures.relayed(polls, Window(20, 30)) == 0


def test_json_has_the_fields_of_the_format():
    data = json.loads(json.dumps(sample().as_json()))
    assert {"scenario", "ok", "leftovers", "runs", "summary", "moves"} <= set(data)
    (move,) = data["moves"]
    wanted = {"run", "vm", "from", "to", "mode", "ok", "probes", "tcp", "guest", "control",
              "queue_peak", "relayed", "phases"}  # fmt: skip
    assert wanted <= set(move)
    assert {"correspondent", "family", "sent", "lost", "duplicated", "longest_gap_ms"} <= set(
        move["probes"][0]
    )
    assert data["summary"]["lost"] == 3
    assert data["summary"]["median"]["stop_to_resume_ms"] == 30.0


def test_ok_needs_no_failures_and_no_leftovers():
    assert sample().ok
    bad = report.Report("x", "", "f", 1, 0, 1.0, (), ("process 1",), ())
    assert not bad.ok


def test_the_text_fits_a_hundred_columns():
    out = io.StringIO()
    print_report(sample(), Console(file=out, width=100))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "2 of 2 sessions survived" in text


def test_the_page_stands_alone_and_escapes():
    page = html(sample())
    assert "<svg" in page
    assert "&lt;tun&gt;" in page
    assert not re.search(r"(src|href)=|@import|url\(|https?://", page)


def test_the_logbook_hears_each_line_once(tmp_path):
    log = tmp_path / "log.json"
    heard = []
    book = Logbook({"nve-a": log}, lambda event: heard.append(event.name))
    book.read()
    log.write_bytes(LINES[0] + b"\nnot json\n" + LINES[1][:10])
    book.read()
    with log.open("ab") as file:
        file.write(LINES[1][10:] + b"\n")
    assert [event.name for event in book.events()] == ["move.requested", "move.prepared"]
    assert heard == ["move.requested", "move.prepared"]


def test_the_narrator_tells_intervals():
    told: list[str] = []
    narrator = Narrator(told.append)
    for event in events():
        narrator.hear(event)
    assert "vm1: nve-b is prepared" in told
    assert "vm1: nve-a redirects to nve-b" in told
    assert "vm1: nve-a: guest stopped, 1.0 ms after the redirect" in told


def test_routes_are_spans_of_time():
    lines = [
        "[2026-11-22T15:00:00.100000] 10.1.0.5 dev vmtabc.0 proto 77 scope link",
        "[2026-11-22T15:00:00.200000] 10.1.0.5 dev vmmob-tun proto 77 scope link",
        "[2026-11-22T15:00:00.250000] Deleted 10.1.0.5 dev vmtabc.0 proto 77 scope link",
        "[2026-11-22T15:00:00.300000] Deleted 10.1.0.5 dev vmmob-tun proto 77 scope link",
        "[2026-11-22T15:00:00.400000] 10.9.0.0/24 via 10.0.1.1 dev rack-a",
        "[2026-11-22T15:00:00.500000] 10.1.0.5 via 10.0.1.3 dev rack-a proto 77",
        "[2026-11-22T15:00:00.600000] local 10.1.0.5 dev lo table local",
    ]
    changes = [parse_line(text, "nve-a", {"10.1.0.5": 4}, {"rack-a"}) for text in lines]
    found = spans([change for change in changes if change is not None])
    assert [(s.via, s.end_ns is not None and (s.end_ns - s.start_ns) // MS) for s in found] == [
        ("local", 100),
        ("tunnel", 100),
        ("host-route", False),
    ]


def test_spinning_is_a_full_cpu_far_above_the_level_before():
    assert spins(0.99, 0.1)
    assert not spins(0.99, 0.95)
    assert not spins(0.3, 0.1)
    assert not spins(None, None)


def test_toml_is_what_the_daemons_read():
    import tomllib

    tables = {"node": {"id": "a", "addresses": ["10.0.0.1"]}, "peer": [{"id": "b"}, {"id": "c"}]}
    assert tomllib.loads(to_toml(tables)) == tables


def test_each_moment_is_taken_at_its_node():
    phases = measures.phases(
        [
            event
            for text in [
                line(1, "manager", "move.requested"),
                line(20, "nve-b", "forwarding", forwarding="redirect", target="nve-a"),
                line(30, "nve-x", "forwarding", forwarding="redirect", target="nve-a"),
                line(600, "nve-b", "forwarding", forwarding="local"),
                line(700, "nve-a", "forwarding", forwarding="redirect", target="nve-b"),
                line(705, "manager", "move.turned"),
                line(710, "nve-a", "forwarding", forwarding="redirect", target="nve-b"),
                line(720, "nve-a", "guest.stopped"),
                line(730, "nve-b", "guest.resumed"),
            ]
            if (event := parse(text, "?")) is not None
        ],
        0,
    )
    assert moments(phases, "nve-a", "nve-b") == {
        "requested": 1.0,
        "delivering": 600.0,
        "redirect": 700.0,
        "turned": 705.0,
        "stop": 720.0,
        "resume": 730.0,
    }


def test_the_queue_told_after_the_next_request_belongs_to_its_own_move():
    late = [parse(text, "?") for text in [*LINES[:6], line(20_000, "nve-b", "queue", queue_peak=9)]]
    mine = [event for event in late if event is not None]
    assert measures.queue_peak(mine, FACTS) == 9
    again = parse(line(15_000, "nve-b", "guest.resumed"), "?")
    assert again is not None
    assert measures.queue_peak([*mine, again], FACTS) is None


AT = {"delivering": 650.0, "redirect": 700.0, "stop": 720.0, "resume": 731.0}


def test_the_parts_of_a_gap_are_the_gap():
    away = split_gap(695.0, 100.0, {**AT, "delivering": 690.0}, 60.0)
    assert away == GapSplit(100.0, 25.0, 11.0, 60.0, 4.0)
    home = split_gap(652.0, 143.0, AT, 60.0)
    assert home == GapSplit(143.0, 68.0, 11.0, 60.0, 4.0)


def test_a_gap_that_lies_elsewhere_is_all_other():
    assert split_gap(100.0, 50.0, AT, 60.0) == GapSplit(50.0, 0.0, 0.0, 0.0, 50.0)
    assert split_gap(900.0, 50.0, AT, None) == GapSplit(50.0, 0.0, 0.0, 0.0, 50.0)
    assert split_gap(695.0, 100.0, {"stop": 720.0}, 60.0) is None


def test_the_first_echo_after_resume_is_of_any_probe():
    record = UdpRecord({1: 10, 2: 20, 3: 30}, {1: [15], 2: [90, 95], 3: [80]})
    assert first_echo_after(record, 50, 100) == 80
    assert first_echo_after(record, 96, 100) is None


def test_the_summary_tells_median_and_longest_with_and_without_the_cold_part():
    data = sample().as_json()
    figures = data["summary"]
    assert figures["max"]["gap_beyond_stop_ms"] == 14.0
    assert figures["median"]["gap_beyond_stop_ms"] == 12.75
    assert figures["max"]["gap_without_cold_ms"] == 4.0
    (move,) = data["moves"]
    assert (move["gap_beyond_stop_ms"], move["gap_without_cold_ms"]) == (14.0, 4.0)
    assert move["probes"][1]["resume_to_echo_ms"] == 10.0


def test_restarts_hands_and_resting_vms_are_in_json_and_text():
    streams = (report.StreamReport(1, "near", "vm1", "ipv4", 100, 2, 90, 1, 0, 9.0, True, 20.0),)
    restarts = (
        report.RestartReport(1, "manager", 5, 500.0, 510.0, 30.0, 600.0),
        report.RestartReport(1, "manager", 9, 700.0, None, None, None),
        report.RestartReport(1, "nve-a", 9, 900.0, 910.0, None, None),
    )
    hands = (
        report.HandMoveReport(
            1, "vm1", "nve-a", "nve-b", True, 7, 800.0, 50.0, 80.0, None, 100, 12, 240.0, True
        ),
    )
    whole = report.Report(
        "s", "", "f", 1, 0, 1.0, (), (), (), (), streams, restarts, hands, "manager"
    )
    data = json.loads(json.dumps(whole.as_json()))
    assert data["summary"]["streams"] == {
        "sent": 100, "lost": 2, "sent_at_rest": 90, "lost_at_rest": 1,
        "tcp_sessions": 1, "tcp_survived": 1,
    }  # fmt: skip
    assert data["summary"]["manager_restarts"] == {
        "count": 2,
        "restart_to_api_ms": {"median": 600.0, "max": 700.0},
        "restart_to_first_answer_ms": {"median": 600.0, "max": 600.0},
    }
    assert (data["by_hand"][0]["from"], data["by_hand"][0]["to"]) == ("nve-a", "nve-b")
    assert data["summary"]["by_hand"]["lost"] == 12
    assert [row["node"] for row in data["restarts"]] == ["manager", "manager", "nve-a"]
    printed = io.StringIO()
    print_report(whole, Console(file=printed, width=100))
    text = " ".join(printed.getvalue().split())
    assert "restarts: 3, of the manager 2; fork to API p50 600.0 ms" in text
    assert "by hand: 1 migrations, 12 probes lost" in text
    assert "2 of 100 lost, at rest 1 of 90" in text
    assert "by hand: 1 migrations" in html(whole)
