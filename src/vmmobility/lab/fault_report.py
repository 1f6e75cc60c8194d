"""The fault matrix's report: as JSON, as tables at a terminal, as one HTML page.

Field names are docs/lab.md's contract.  Not here: what a cell's row holds (fault_cells.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vmmobility.lab.fault_terms import FAULTS, Outcome

FORMAT = 1
NOT_STRUCK = Outcome.NOT_APPLICABLE.value


@dataclass(slots=True)
class FaultReport:
    """What was played, and what went wrong with the lab itself."""

    scenario: str
    description: str
    settings: dict[str, str]
    started_ns: int
    cells: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every chosen cell came to what it must, and nothing is left."""
        return bool(self.cells) and not self.problems()

    def problems(self) -> list[str]:
        """What is not as it should be."""
        cells = [f"{_name(c)}: {c['outcome']}: {c['problem']}" for c in self.cells if not c["ok"]]
        return [*cells, *self.failures, *(f"left behind: {item}" for item in self.leftovers)]

    def as_json(self) -> dict[str, Any]:
        """The whole report."""
        return {
            "format": FORMAT,
            "scenario": self.scenario,
            "description": self.description,
            "settings": self.settings,
            "started_ns": self.started_ns,
            "duration_s": round(self.duration_s, 1),
            "ok": self.ok,
            "summary": self.summary(),
            "failures": self.failures,
            "leftovers": self.leftovers,
            "cells": self.cells,
        }

    def summary(self) -> dict[str, Any]:
        """Figures over all cells."""
        played = [cell for cell in self.cells if cell["outcome"] != NOT_STRUCK]
        return {
            "cells": len(self.cells),
            "played": len(played),
            "as_expected": sum(bool(cell["ok"]) for cell in played),
            "ran_twice": sum(cell["twice_ms"] > 0 for cell in played),
            "acknowledged_writes_lost": sum(cell["acknowledged_writes_lost"] for cell in played),
            "outcomes": dict(sorted(Counter(cell["outcome"] for cell in self.cells).items())),
        }

    def modes(self) -> Iterator[tuple[str, list[str], dict[tuple[str, str], dict[str, Any]]]]:
        """Of each mode: its phases that were chosen, and the cells by (phase, fault)."""
        for mode in dict.fromkeys(cell["mode"] for cell in self.cells):
            cells = [cell for cell in self.cells if cell["mode"] == mode]
            phases = list(dict.fromkeys(cell["phase"] for cell in cells))
            yield mode, phases, {(cell["phase"], cell["fault"]): cell for cell in cells}


def _name(cell: Mapping[str, Any]) -> str:
    return f"{cell['mode']} {cell['phase']} {cell['fault']}"


def _faults(cells: Mapping[tuple[str, str], Any]) -> list[str]:
    return [fault for fault in FAULTS if any(of == fault for _, of in cells)]


def _total(report: FaultReport) -> str:
    total = report.summary()
    return (
        f"{total['as_expected']} of {total['played']} cells as expected, "
        f"{total['ran_twice']} with two running, "
        f"{total['acknowledged_writes_lost']} acknowledged writes lost, {report.duration_s:.0f} s"
    )


def print_faults(report: FaultReport, console: Console) -> None:
    """A table a mode: faults down, phases across."""
    console.print(Rule(Text(report.scenario)))
    for mode, phases, cells in report.modes():
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
        table.add_column(mode, no_wrap=True)
        for phase in phases:
            table.add_column(phase.replace("-", "\n"))
        for fault in _faults(cells):
            table.add_row(fault, *(_text(cells.get((phase, fault))) for phase in phases))
        console.print(table)
        console.print()
    for problem in report.problems():
        console.print(Text(f"FAILED  {problem}", style="bold red"))
    verdict = Text("ok  ", style="bold green") if report.ok else Text("NOT ok  ", style="bold red")
    console.print(verdict.append(_total(report), style="default"))


def _text(cell: Mapping[str, Any] | None) -> Text:
    if cell is None:
        return Text("")
    if cell["outcome"] == NOT_STRUCK:
        return Text("–", style="dim")
    return Text(cell["outcome"], style="green" if cell["ok"] else "bold red")


def faults_html(report: FaultReport) -> str:
    """One page that loads nothing."""
    style = (resources.files("vmmobility.lab") / "report.css").read_text(encoding="utf-8")
    when = datetime.fromtimestamp(report.started_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
    good, word = ("good", "ok") if report.ok else ("bad", "not ok")
    wrong = "".join(f'<div class="badcell">{escape(line)}</div>' for line in report.problems())
    parts = [
        f'<h1>{escape(report.scenario)} <span class="chip {good}">{word}</span></h1>',
        f"<p>{escape(report.description)}. {when}. {escape(_total(report))}.</p>",
        f"<section><h2>What went wrong</h2>{wrong}</section>" if wrong else "",
        *(_section(*of) for of in report.modes()),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(report.scenario)}: lab report</title><style>{style}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _section(
    mode: str, phases: list[str], cells: Mapping[tuple[str, str], Mapping[str, Any]]
) -> str:
    head = "".join(f'<th class="l">{escape(phase)}</th>' for phase in phases)
    rows = ""
    for fault in _faults(cells):
        row = "".join(_box(cells.get((phase, fault))) for phase in phases)
        title = escape(FAULTS[fault].words)
        rows += f'<tr><td class="l" title="{title}">{escape(fault)}</td>{row}</tr>'
    table = f'<table><tr><th class="l">fault</th>{head}</tr>{rows}</table>'
    lines = "".join(_detail(cell) for cell in cells.values() if cell["outcome"] != NOT_STRUCK)
    details = (
        '<details><summary>every cell</summary><table><tr><th class="l">cell</th>'
        '<th class="l">expected</th><th class="l">outcome</th><th class="l">runs at</th>'
        '<th>writes</th><th>lost</th><th class="l">the manager says</th><th>after, s</th></tr>'
        f"{lines}</table></details>"
    )
    return f"<section><h2>{escape(mode)}</h2>{table}{details}</section>"


def _box(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "<td></td>"
    if cell["outcome"] == NOT_STRUCK:
        return f'<td class="l" title="{escape(cell["why"])}">–</td>'
    mark = "l" if cell["ok"] else "l badcell"
    title = escape(cell["problem"] or cell["why"])
    return f'<td class="{mark}" title="{title}">{escape(cell["outcome"])}</td>'


def _detail(cell: Mapping[str, Any]) -> str:
    words = (
        f"{cell['phase']} {cell['fault']}", cell["expected"], cell["outcome"],
        ", ".join(cell["running_at"]) or "nowhere",
    )  # fmt: skip
    left = "".join(f'<td class="l">{escape(word)}</td>' for word in words)
    after = "" if cell["said_after_s"] is None else f"{cell['said_after_s']:.1f}"
    return (
        f"<tr>{left}<td>{cell['acknowledged_writes']}</td><td>{cell['acknowledged_writes_lost']}"
        f'</td><td class="l">{escape(cell["said"])}</td><td>{after}</td></tr>'
    )
