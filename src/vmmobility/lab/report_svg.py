"""A move as SVG, whole and close up: moments, stop to resume, probe gaps, routes by node.

Colours are CSS variables of the page (report_html.py).  Not here: the page.
"""

from __future__ import annotations

import math
from html import escape

from vmmobility.lab.moments import moments
from vmmobility.lab.report import MoveReport

_WIDTH, _LEFT, _RIGHT = 960, 130, 20
_LANE = 22
_TOP = 8.0
_GRAVE = ("stop", "failed", "aborted")


class _Axis:
    """Milliseconds to horizontal places."""

    def __init__(self, begin_ms: float, end_ms: float) -> None:
        self.begin_ms = begin_ms
        self.end_ms = max(end_ms, begin_ms + 1)

    def x(self, at_ms: float) -> float:
        inside = min(max(at_ms, self.begin_ms), self.end_ms)
        share = (inside - self.begin_ms) / (self.end_ms - self.begin_ms)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def timeline(move: MoveReport) -> str:
    """The whole move; an empty string if nothing is known of it."""
    marks = moments(move.phases, move.source, move.target)
    if not marks:
        return ""
    ends = [probe.gap_start_ms + probe.longest_gap_ms for probe in move.probes]
    last = max(marks.values())
    end = max([last, *(gap_end for gap_end in ends if gap_end < 2 * last)])
    return _drawing(move, marks, _Axis(-0.02 * end, end * 1.06 + 5), f"Move {move.number}")


def close_up(move: MoveReport) -> str:
    """The switch alone, from the last moment before the stop's gap to its end."""
    marks = moments(move.phases, move.source, move.target)
    worst = move.worst
    if "stop" not in marks or "resume" not in marks or worst is None:
        return ""
    begins, ends = [marks["stop"]], [marks["resume"]]
    for probe in move.probes:
        gap_end = probe.gap_start_ms + probe.longest_gap_ms
        if probe.gap_start_ms <= marks["resume"] and gap_end >= marks["stop"]:
            begins.append(probe.gap_start_ms)
            ends.append(gap_end)
    begins += [marks[name] for name in ("redirect",) if name in marks]
    ends += [marks[name] for name in ("registered", "redirected") if name in marks]
    begin, end = min(begins), max(ends)
    room = max(1.0, 0.06 * (end - begin))
    axis = _Axis(begin - room, end + room)
    inside = {name: at for name, at in marks.items() if axis.begin_ms <= at <= axis.end_ms}
    return _drawing(move, inside, axis, f"The switch of move {move.number}")


def _drawing(move: MoveReport, marks: dict[str, float], axis: _Axis, title: str) -> str:
    phase_rows, y = _phase_rows(marks, axis, _TOP)
    probe_rows, y = _probe_rows(move, axis, y + 6)
    route_rows, y = _route_rows(move, axis, y + 6)
    rows = [_scale(axis, y), _band(marks, axis, y), *phase_rows, *probe_rows, *route_rows]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {y + 26:g}" role="img" aria-label="{escape(title)}">'
        + "".join(rows)
        + "</svg>"
    )


def _label(text: str, y: float) -> str:
    return f'<text class="lane" x="{_LEFT - 8}" y="{y + 15}">{escape(text)}</text>'


def _band(marks: dict[str, float], axis: _Axis, bottom: float) -> str:
    if "stop" not in marks or "resume" not in marks:
        return ""
    left, right = axis.x(marks["stop"]), axis.x(marks["resume"])
    wide = max(1.0, right - left)
    tip = f"stop to resume {marks['resume'] - marks['stop']:.1f} ms"
    return (
        f'<rect class="band" x="{left}" y="{_TOP}" width="{wide:.1f}" height="{bottom - _TOP}">'
        f"<title>{tip}</title></rect>"
    )


def _phase_rows(marks: dict[str, float], axis: _Axis, y: float) -> tuple[list[str], float]:
    """Staircase: each phase on the row where its predecessor left room."""
    rows = [_label("moments", y)]
    ends: list[float] = []
    places = 1 if axis.end_ms - axis.begin_ms < 500 else 0
    for name, at_ms in marks.items():
        x = axis.x(at_ms)
        text = f"{name} {at_ms:,.{places}f}"
        flip = x > _WIDTH - 150
        left = x - 7 * len(text) - 10 if flip else x
        row = next((i for i, end in enumerate(ends) if end < left), len(ends))
        if row == len(ends):
            ends.append(0.0)
        ends[row] = x + 10 if flip else x + 7 * len(text) + 12
        top = y + row * _LANE
        anchor = ' text-anchor="end"' if flip else ""
        shift = -7 if flip else 7
        kind = " bad" if name in _GRAVE else ""
        rows.append(
            f'<circle class="dot{kind}" cx="{x}" cy="{top + 11}" r="4"/>'
            f'<text class="mark" x="{x + shift}" y="{top + 15}"{anchor}>{text}</text>'
        )
    return rows, y + max(1, len(ends)) * _LANE


def _probe_rows(move: MoveReport, axis: _Axis, y: float) -> tuple[list[str], float]:
    rows = []
    for probe in move.probes:
        rows.append(_label(f"{probe.correspondent} {probe.family}", y))
        left, right = axis.x(axis.begin_ms), axis.x(axis.end_ms)
        rows.append(
            f'<rect class="alive" x="{left}" y="{y + 7}" width="{right - left:.1f}" height="8"/>'
        )
        start, end = probe.gap_start_ms, probe.gap_start_ms + probe.longest_gap_ms
        if end > axis.begin_ms and start < axis.end_ms:
            x = axis.x(start)
            wide = max(1.5, axis.x(end) - x)
            tip = f"longest gap {probe.longest_gap_ms:.1f} ms, {probe.lost} lost of {probe.sent}"
            rows.append(
                f'<rect class="gap" x="{x}" y="{y + 5}" width="{wide:.1f}" height="12">'
                f"<title>{tip}</title></rect>"
            )
        y += _LANE
    return rows, y


def _route_rows(move: MoveReport, axis: _Axis, y: float) -> tuple[list[str], float]:
    rows = []
    for node in sorted({route.node for route in move.routes}):
        rows.append(_label(node, y))
        for route in move.routes:
            if route.node != node or route.family != "ipv4":
                continue
            left = axis.x(axis.begin_ms if route.from_ms is None else route.from_ms)
            right = axis.x(axis.end_ms if route.to_ms is None else route.to_ms)
            if right <= left:
                continue
            tip = escape(f"{route.via}: {route.text}")
            rows.append(
                f'<rect class="route {route.via}" x="{left}" y="{y + 3}" '
                f'width="{right - left:.1f}" height="16"><title>{tip}</title></rect>'
            )
            if right - left > 60:
                rows.append(f'<text class="via" x="{left + 5}" y="{y + 15}">{route.via}</text>')
        y += _LANE
    return rows, y


def _scale(axis: _Axis, y: float) -> str:
    """Ticks at round milliseconds."""
    raw = (axis.end_ms - axis.begin_ms) / 8
    power = 10.0 ** (len(str(int(raw))) - 1) if raw >= 1 else 1.0
    step = next((power * m for m in (1, 2, 5, 10) if power * m >= raw), power * 10)
    ticks, at_ms = [], max(0.0, math.ceil(axis.begin_ms / step) * step)
    while at_ms <= axis.end_ms:
        x = axis.x(at_ms)
        ticks.append(f'<line class="tick" x1="{x}" x2="{x}" y1="{_TOP}" y2="{y}"/>')
        ticks.append(f'<text class="scale" x="{x}" y="{y + 16}">{at_ms:g} ms</text>')
        at_ms += step
    return "".join(ticks)
