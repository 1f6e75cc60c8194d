"""The report as one self-contained HTML page: nothing is loaded from anywhere, light and dark.

Not here: the drawings (report_svg.py).  Rests on the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from vmmobility.lab.report import MoveReport, Report
from vmmobility.lab.report_svg import timeline

_STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1d2129;--soft:#667085;--line:#e4e7ec;
--good:#12805c;--bad:#c4320a;--gap:#e5484d;--band:#f9d9c6;--alive:#a6dcc5;--local:#3b82c4;
--tunnel:#8e6bbf;--hostroute:#c08a1e}
@media(prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1c1f25;--ink:#e6e8ec;--soft:#98a2b3;
--line:#2f343d;--good:#4cc38a;--bad:#ff8b61;--gap:#ff6369;--band:#573725;--alive:#22604a;
--local:#3f7fb8;--tunnel:#7d5fb0;--hostroute:#a8802a}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}main{max-width:1060px;margin:0 auto;padding:32px 20px 80px}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:0 0 8px}p{margin:4px 0 16px;color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px;
margin:20px 0;overflow-x:auto}.chip{display:inline-block;border-radius:99px;padding:1px 10px;
font-size:13px;font-weight:600;color:var(--card)}.chip.good{background:var(--good)}
.chip.bad{background:var(--bad)}.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 18px;
min-width:130px}.tile b{display:block;font-size:24px;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}table{border-collapse:collapse;width:100%;
font-variant-numeric:tabular-nums;margin:12px 0}th{font-weight:600;color:var(--soft);font-size:13px}
th,td{text-align:right;padding:4px 10px;border-bottom:1px solid var(--line)}
th:first-child,td:first-child,th.l,td.l{text-align:left}.badcell{color:var(--bad);font-weight:700}
svg{width:100%;min-width:760px;height:auto;margin:8px 0}svg text{font:12px system-ui,sans-serif;
fill:var(--ink)}svg .lane{text-anchor:end;fill:var(--soft)}svg .scale{text-anchor:middle;
fill:var(--soft);font-size:11px}svg .tick{stroke:var(--line);stroke-dasharray:2 3}
svg .band{fill:var(--band)}svg .alive{fill:var(--alive)}svg .gap{fill:var(--gap)}
svg .dot{fill:var(--local)}svg .dot.bad{fill:var(--bad)}svg .via{fill:#fff;font-size:11px}
svg .route{rx:3px;fill:var(--tunnel)}svg .local{fill:var(--local)}
svg .host-route{fill:var(--hostroute)}details summary{cursor:pointer;color:var(--soft)}
.legend{font-size:12.5px;margin:0 0 12px}.legend i{display:inline-block;width:12px;height:12px;
border-radius:3px;margin:0 6px 0 18px;vertical-align:-1px}
code{font:12.5px ui-monospace,monospace}
"""

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
        *(_move(move) for move in report.moves),
        _steps(report),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(report.scenario)}: lab report</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


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
    median = total["median"]
    tiles = [
        (f"{total['moves_ok']} / {total['moves']}", "moves ok"),
        (f"{total['lost']:,}", f"probes lost of {total['sent']:,}"),
        (f"{total['duplicated']:,}", "duplicated"),
        (f"{total['tcp_survived']} / {total['tcp_sessions']}", "TCP sessions survived"),
        (_ms(median["longest_gap_ms"]), "longest gap, median"),
        (_ms(median["stop_to_resume_ms"]), "stop to resume, median"),
        (_ms(median["downtime_ms"]), "guest's downtime, median"),
    ]
    boxes = (f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    return f'<div class="tiles">{"".join(boxes)}</div>'


def _move(move: MoveReport) -> str:
    title = f"Move {move.number}: {move.vm} from {move.source or '?'} to {move.target}"
    state = _chip(move.ok, "ok" if move.ok else move.reason or "failed")
    run = f"<p>Run {move.run}, {escape(move.mode)} move.</p>"
    return (
        f"<section><h2>{escape(title)} {state}</h2>{run}{timeline(move)}{_LEGEND}"
        f"{_probe_table(move)}{_fact_table(move)}{_details(move)}</section>"
    )


def _probe_table(move: MoveReport) -> str:
    rows = [
        (
            probe.correspondent, probe.family, f"{probe.sent:,}",
            (str(probe.lost), probe.lost > 0), str(probe.duplicated),
            _ms(probe.longest_gap_ms), _ms(probe.gap_beyond_stop_ms),
        )
        for probe in move.probes
    ]  # fmt: skip
    heads = ("correspondent", "family", "sent", "lost", "duplicated", "longest gap", "beyond stop")
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
        ("redirect before stop", _ms(control.redirect_to_stop_ms)),
        ("resume to registered", _ms(control.registered_ms)),
        ("registered to all redirected", _ms(control.redirected_ms)),
        ("packets relayed", f"{move.relayed:,}"),
        ("queue peak at the destination", "–" if move.queue_peak is None else move.queue_peak),
    ]
    return _table(("", ""), facts)


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
