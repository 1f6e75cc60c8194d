"""`vmmob token new|list|revoke`: who may ask the manager's API off its unix socket.

They change the file that `api.tokens` names; the manager reads it again by itself.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import click

from vmmobility.api.declared import ApiRole
from vmmobility.api.tokens import ROLES, Token, add_token, read_tokens, revoke_token
from vmmobility.cli import output
from vmmobility.cli.output import Column
from vmmobility.cli.parameters import PlainText
from vmmobility.errors import Conflict

FILE = Path("/etc/vmmobility/api-tokens.json")
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
MOST_S = 100 * 365 * 86400

TOKENS: list[Column] = [
    ("TOKEN", lambda row: row["name"]),
    ("ROLE", lambda row: row["role"]),
    ("MADE", lambda row: _day(row["created_s"])),
    ("ENDS", lambda row: "never" if row["expires_s"] is None else _day(row["expires_s"])),
    ("COUNTS", lambda row: not row["expired"]),
]

file_option = click.option(
    "--file",
    "path",
    envvar="VMMOB_TOKENS",
    default=FILE,
    show_default=True,
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file that api.tokens of the manager's configuration names.",
)


def seconds_of(text: str) -> int:
    """Of a duration as 90m, 12h, 30d, 8w.  Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not 0 < seconds <= MOST_S:
        raise ValueError("write like 90m, 12h, 30d or 8w")
    return seconds


@click.group()
def token() -> None:
    """Tokens of the manager's API: make, list and revoke them."""


_NEW = "\n\n".join(
    (
        "Make a token and print it.  It is shown once: the file holds its hash alone.",
        "What a role may, besides what those before it may:",
        *(f"{role.text}: {role.may}." for role in ApiRole),
    )
)


@token.command(help=_NEW)
@click.argument("name")
@click.option("--role", type=click.Choice(list(ROLES)), required=True, help="What it may do.")
@click.option(
    "--expires",
    type=PlainText("duration", seconds_of),
    help="After so long it counts no more (30d); for ever unless given.",
)
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it into this new file, which nobody else can read, instead of printing it.",
)
@file_option
@output.as_json
def new(
    name: str,
    role: str,
    expires: int | None,
    target: Path | None,
    path: Path,
    json_output: bool,
) -> None:
    now_s = time.time()
    end = None if expires is None else now_s + expires
    with ExitStack() as stack:
        # Made before the token: a secret that nobody has is of no use.
        file = stack.enter_context(_new_file(target)) if target is not None else None
        try:
            secret, made = add_token(path, name, ROLES[role], now_s, end)
        except ValueError as error:
            raise click.UsageError(f"{name!r} is no name: {error}") from None
        if file is not None:
            file.write(secret + "\n")
    if json_output:
        shown = {"token": secret} if target is None else {"output": str(target)}
        output.print_json({**_row(made, now_s), **shown})
    else:
        click.echo(secret if target is None else f"{name}: written to {target}")


@contextmanager
def _new_file(path: Path) -> Iterator[TextIO]:
    """For its owner alone; none is left if the body fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Conflict(f"{path}: is there already", "name a new file, or remove it") from None
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@token.command("list")
@file_option
@output.as_json
def list_tokens(path: Path, json_output: bool) -> None:
    """The tokens: names, roles and ends; never themselves."""
    rows = [_row(each, time.time()) for each in read_tokens(path)]
    output.print_json(rows) if json_output else output.print_table(rows, TOKENS)


@token.command()
@click.argument("name")
@file_option
@output.as_json
def revoke(name: str, path: Path, json_output: bool) -> None:
    """End a token: the manager's next answer to it is 401."""
    gone = revoke_token(path, name)
    output.print_json(_row(gone, time.time())) if json_output else click.echo(f"{name} is revoked")


def _row(each: Token, now_s: float) -> dict[str, Any]:
    return {
        "name": each.name,
        "role": each.role,
        "created_s": each.created_s,
        "expires_s": each.expires_s,
        "expired": each.has_expired(now_s),
    }


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
