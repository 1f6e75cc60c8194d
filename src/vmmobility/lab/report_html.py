"""The report as one self-contained HTML page: nothing is loaded from anywhere, light and dark.

Not here: the drawings (report_svg.py).  Rests on the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources

from vmmobility.lab.report import MoveReport, Report
from vmmobility.lab.report_svg import close_up, timeline
from vmmobility.lab.report_text import rest_lines

_LEGEND = (
    '<p class="legend"><i style="background:var(--band)"></i>stop to resume'
    '<i style="background:var(--gap)"></i>longest gap of a probe'
    '<i style="background:var(--local)"></i>route to the VM\'s tap'
    '<i style="background:var(--tunnel)"></i>tunnel'
    '<i style="background:var(--hostroute)"></i>host route</p>'
)


def html(report: Report) -> str:
    """The whole page."""
    chip = _chip(report.ok, "ok" if report.ok else "not ok")
    when = datetime.fromtimestamp(report.started_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        f"<h1>{escape(report.scenario)} {chip}</h1>",
        f"<p>{escape(report.description)}. Fabric {escape(report.fabric)}, {when}, "
        f"{report.runs} run(s), {report.duration_s:.0f} s.</p>",
        _problems(report),
        _tiles(report),
        *(f"<p>{escape(line)}</p>" for line in rest_lines(report)),
        *(_move(move) for move in report.moves),
        _fabric(report),
        _steps(report),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(report.scenario)}: lab report</title><style>{_style()}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _style() -> str:
    return (resources.files("vmmobility.lab") / "report.css").read_text(encoding="utf-8")


def _chip(good: bool, text: str) -> str:
    return f'<span class="chip {"good" if good else "bad"}">{escape(text)}</span>'


def _problems(report: Report) -> str:
    lines = [*report.failures, *(f"left behind: {item}" for item in report.leftovers)]
    if not lines:
        return ""
    items = "".join(f'<div class="badcell">{escape(line)}</div>' for line in lines)
    return f"<section><h2>What went wrong</h2>{items}</section>"


def _tiles(report: Report) -> str:
    total = report.summary()
    median, most = total["median"], total["max"]
    tiles = [
        (f"{total['moves_ok']} / {total['moves']}", "moves ok"),
        (f"{total['lost']:,}", f"probes lost of {total['sent']:,}"),
        (f"{total['duplicated']:,}", "duplicated"),
        (f"{total['tcp_survived']} / {total['tcp_sessions']}", "TCP sessions survived"),
        (_both(median, most, "longest_gap_ms"), "longest gap, median / longest"),
        (_both(median, most, "stop_to_resume_ms"), "stop to resume"),
        (_both(median, most, "gap_beyond_stop_ms"), "gap beyond stop to resume"),
        (_both(median, most, "gap_without_cold_ms"), "… and without resume to first echo"),
    ]
    boxes = (f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    return f'<div class="tiles">{"".join(boxes)}</div>'


def _both(median: Mapping[str, float | None], most: Mapping[str, float | None], key: str) -> str:
    """Median and longest, in ms."""
    shown = ("–" if figure[key] is None else f"{figure[key]:,.1f}" for figure in (median, most))
    return " / ".join(shown) + " ms"


def _move(move: MoveReport) -> str:
    title = f"Move {move.number}: {move.vm} from {move.source or '?'} to {move.target}"
    state = _chip(move.ok, "ok" if move.ok else move.reason or "failed")
    run = f"<p>Run {move.run}, {escape(move.mode)} move.</p>"
    return (
        f"<section><h2>{escape(title)} {state}</h2>{run}{timeline(move)}"
        f"{_close_up(move)}{_LEGEND}{_gap(move)}{_probe_table(move)}"
        f"{_fact_table(move)}{_details(move)}</section>"
    )


def _close_up(move: MoveReport) -> str:
    drawing = close_up(move)
    return f"<h3>The switch, close up</h3>{drawing}" if drawing else ""


def _gap(move: MoveReport) -> str:
    """The longest gap as one bar of its parts."""
    parts = move.worst.gap_parts if move.worst else None
    if parts is None or parts.longest_ms <= 0:
        return ""
    shown = [
        ("other", parts.other_ms, "elsewhere"),
        ("held", parts.held_ms, "redirect to stop"),
        ("stopped", parts.stopped_ms, "stop to resume"),
        ("cold", parts.cold_ms, "resume to first echo"),
    ]
    bars = "".join(
        f'<b class="{kind}" style="flex-grow:{ms:.3f}"></b>' for kind, ms, _ in shown if ms > 0
    )
    words = "".join(
        f'<span><i class="{kind}"></i>{text} {_ms(ms)}</span>' for kind, ms, text in shown
    )
    return (
        f"<h3>The longest gap, {_ms(parts.longest_ms)}</h3>"
        f'<div class="gapbar">{bars}</div><p class="parts">{words}</p>'
    )


def _probe_table(move: MoveReport) -> str:
    rows = [
        (
            probe.correspondent, probe.family, f"{probe.sent:,}",
            (str(probe.lost), probe.lost > 0), str(probe.duplicated),
            _ms(probe.longest_gap_ms), _ms(probe.gap_beyond_stop_ms),
            _ms(probe.resume_to_echo_ms),
        )
        for probe in move.probes
    ]  # fmt: skip
    heads = ("correspondent", "family", "sent", "lost", "duplicated", "longest gap",
             "beyond stop to resume", "resume to first echo")  # fmt: skip
    return _table(heads, rows)


def _fact_table(move: MoveReport) -> str:
    tcp, guest, control = move.tcp, move.guest, move.control
    sound = ("yes", False) if guest.sound else (f"no: {guest.reason}", True)
    survived = (f"{tcp.survived} of {tcp.sessions}", tcp.survived < tcp.sessions)
    facts: list[tuple[str, object]] = [
        ("TCP sessions survived", survived),
        ("longest TCP stall", _ms(tcp.longest_stall_ms)),
        ("guest's downtime (hypervisor's own)", _ms(guest.downtime_ms)),
        ("stop to resume", _ms(guest.stop_to_resume_ms)),
        ("copy in total", _ms(guest.total_ms)),
        ("guest sound", sound),
        ("gap beyond stop to resume", _ms(move.gap_beyond_stop_ms)),
        ("the same without resume to first echo", _ms(move.gap_without_cold_ms)),
        ("resume to first echo, median", _ms(guest.cold_ms)),
        ("redirect before stop", _ms(control.redirect_to_stop_ms)),
        ("resume to registered", _ms(control.registered_ms)),
        ("registered to all redirected", _ms(control.redirected_ms)),
        ("packets relayed", f"{move.relayed:,}"),
        ("queue peak at the destination", "–" if move.queue_peak is None else move.queue_peak),
    ]
    cells = "".join(
        f"<div><dt>{escape(name)}</dt>{_cell(value).replace('td', 'dd')}</div>"
        for name, value in facts
    )
    return f'<dl class="facts">{cells}</dl>'


def _details(move: MoveReport) -> str:
    routes = _table(
        ("node", "family", "via", "from", "to", "route"),
        [
            (r.node, r.family, r.via, "before" if r.from_ms is None else _ms(r.from_ms),
             "after" if r.to_ms is None else _ms(r.to_ms), r.text)
            for r in move.routes
        ],
    )  # fmt: skip
    phases = _table(
        ("phase", "node", "at"), [(p["name"], p["node"], _ms(p["at_ms"])) for p in move.phases]
    )
    return (
        f"<details><summary>Which node held which route when</summary>{routes}</details>"
        f"<details><summary>Every event</summary>{phases}</details>"
    )


def _fabric(report: Report) -> str:
    """Where packets went once all had settled."""
    paths = report.fabric_report.last_paths()
    if not paths:
        return ""
    rows = [
        (p.run, p.correspondent, p.vm, p.family, (" > ".join(p.hops), not p.direct)) for p in paths
    ]
    table = _table(("run", "correspondent", "VM", "family", "settled path"), rows)
    times = _table(
        ("move", "announced", "inside the DC", "withdrawn", "inside the DC", "converged"),
        [
            (t.move, _ms(t.announced_ms), _ms(t.announced_inside_ms), _ms(t.withdrawn_ms),
             _ms(t.withdrawn_inside_ms), _ms(t.converged_ms))
            for t in report.fabric_report.routes
        ],
    )  # fmt: skip
    return f"<section><h2>The fabric</h2>{table}{times}</section>"


def _steps(report: Report) -> str:
    if not report.steps:
        return ""
    rows = [
        (step["assert"], step["run"], ("yes" if step["ok"] else f"no: {step['seen']}",
         not step["ok"]), f"{step['waited_s']:.1f} s")
        for step in report.steps
    ]  # fmt: skip
    table = _table(("assertion", "run", "held", "after"), rows)
    return f"<section><h2>Assertions</h2>{table}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads) if any(heads) else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        text, bad = value
        return f"<td{' class=badcell' if bad else ''}>{escape(str(text))}</td>"
    return f"<td>{escape(str(value))}</td>"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f} ms"
