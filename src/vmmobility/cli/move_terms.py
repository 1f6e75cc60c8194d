"""The terms of a move as virsh users expect them: --timeout, --bandwidth, --copy-storage and so on.

Not here: what they mean (wire/move_terms.py), the command (move.py).  Rests on click.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from vmmobility.wire.move_terms import (
    MAX_BANDWIDTH_MIB_S,
    MAX_DOWNTIME_MS,
    MAX_TIMEOUT_S,
    MoveTerms,
)
from vmmobility.wire.registry import CopyStorage, OnTimeout

_OPTIONS = (
    click.option(
        "--timeout",
        "timeout_s",
        type=click.IntRange(1, MAX_TIMEOUT_S),
        metavar="SECONDS",
        help="The copy must have converged by then; if not, see --on-timeout.",
    ),
    click.option(
        "--on-timeout",
        type=click.Choice([policy.name.lower() for policy in OnTimeout]),
        help="abort (default): the VM stays where it is.  force: it goes on at the destination at "
        "once, and the rest of its memory follows (post-copy).",
    ),
    click.option(
        "--timeout-postcopy", is_flag=True, help="The same as --on-timeout force (as in virsh)."
    ),
    click.option(
        "--bandwidth",
        "bandwidth_mib_s",
        type=click.IntRange(1, MAX_BANDWIDTH_MIB_S),
        metavar="MIB/S",
        help="Pace of the copy of its memory, and of each disk, in MiB for a second.",
    ),
    click.option(
        "--downtime",
        "downtime_ms",
        type=click.IntRange(1, MAX_DOWNTIME_MS),
        metavar="MS",
        help="Milliseconds that the VM may stand still: the copy goes on until what remains passes "
        "within them.",
    ),
    click.option(
        "--copy-storage",
        type=click.Choice([which.name.lower() for which in CopyStorage]),
        help="Which disks to copy.  auto (default): those that the NVEs do not share.  all, none: "
        "the move is refused where that cannot be.",
    ),
    click.option(
        "--copy-storage-all", is_flag=True, help="The same as --copy-storage all (as in virsh)."
    ),
)


def terms_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options, and the argument `terms`."""

    @wraps(command)
    def with_terms(
        timeout_s: int | None,
        on_timeout: str | None,
        timeout_postcopy: bool,
        bandwidth_mib_s: int | None,
        downtime_ms: int | None,
        copy_storage: str | None,
        copy_storage_all: bool,
        **others: Any,
    ) -> None:
        policy = _one("--on-timeout", on_timeout, "--timeout-postcopy", timeout_postcopy, "force")
        if policy is not None and timeout_s is None:
            raise click.UsageError("--on-timeout needs --timeout SECONDS.")
        storage = _one(
            "--copy-storage", copy_storage, "--copy-storage-all", copy_storage_all, "all"
        )
        terms = MoveTerms(
            timeout_s or 0,
            OnTimeout[(policy or "abort").upper()],
            bandwidth_mib_s or 0,
            downtime_ms or 0,
            CopyStorage[(storage or "auto").upper()],
        )
        command(terms=terms, **others)

    for option in reversed(_OPTIONS):
        with_terms = option(with_terms)
    return with_terms


def _one(option: str, said: str | None, flag: str, flagged: bool, meant: str) -> str | None:
    """What an option says, or a flag that says it in another word; not two things at once."""
    if flagged and said not in (None, meant):
        raise click.UsageError(f"{option} {said} and {flag} contradict each other.")
    return meant if flagged else said
