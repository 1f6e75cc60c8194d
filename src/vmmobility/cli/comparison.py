"""How `vmmob check` and `vmmob nve check` ask and print: differences, a closing line, an exit code.

Not here: comparing, which the daemons do.  Rests on click and threading (a sign of life).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from vmmobility.cli import output
from vmmobility.cli.output import Column

SILENT_S = 1.0  # what takes longer says so, again and again
REPEAT_S = 5.0

DIFFERENCES: list[Column] = [
    ("VM", output.vm_name),
    ("NVE", lambda row: row["nve"]),
    ("WHAT", lambda row: row["what"]),
    ("EXPECTED", lambda row: row["expected"]),
    ("FOUND", lambda row: row["found"]),
    ("REPAIRED", lambda row: row["repaired"]),
]
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, max=3600, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds that it may take.",
)


@contextmanager
def patience(what: str) -> Iterator[None]:
    """Says on standard error, while the body runs, what is waited for and for how long."""
    ended = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        wait = SILENT_S
        while not ended.wait(wait):
            click.echo(f"{what} … {time.monotonic() - began:.0f} s", err=True)
            wait = REPEAT_S

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def print_comparison(found: Mapping[str, Any], what: str, *, as_json: bool) -> None:
    """The answer of POST /v1/check; exits with 1 unless everything answered and nothing differed.

    what: what was compared, for the closing line
    """
    drift, unanswered = found["drift"], found.get("unanswered")
    if as_json:
        output.print_json(found)
    else:
        if drift:
            output.print_table(drift, DIFFERENCES)
        repaired = sum(bool(row["repaired"]) for row in drift)
        line = f"{found['checked']} {what} compared, {len(drift)} differences ({repaired} repaired)"
        if unanswered is not None:
            names = f": {', '.join(unanswered)}" if unanswered else ""
            line += f", {len(unanswered)} NVEs did not answer{names}"
        click.echo(line)
    if drift or unanswered:
        click.get_current_context().exit(1)
