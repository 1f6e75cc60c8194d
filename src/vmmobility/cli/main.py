"""`vmmob`: the group of all commands, and errors as `error:` and `remedy:` lines.

Not here: the commands (one module a group).  Rests on click.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from vmmobility import __version__
from vmmobility.cli import output
from vmmobility.cli.check import check
from vmmobility.cli.config import config
from vmmobility.cli.drain import drain
from vmmobility.cli.events import events
from vmmobility.cli.group import group
from vmmobility.cli.key import key
from vmmobility.cli.manager import manager
from vmmobility.cli.move import move
from vmmobility.cli.napt import napt
from vmmobility.cli.nve import nve
from vmmobility.cli.router import router
from vmmobility.cli.server import server
from vmmobility.cli.show import show
from vmmobility.cli.token import token
from vmmobility.cli.trace import trace
from vmmobility.cli.vm import vm
from vmmobility.errors import EnvironmentProblem, VmMobilityError

# Loaded when they are asked for: name -> (module, attribute).
LATER = {
    "lab": ("vmmobility.cli.lab", "lab"),
    "replay": ("vmmobility.cli.replay", "replay"),
}


class _Commands(click.Group):
    """A group some of whose commands are imported only when asked for.

    One that cannot be imported breaks itself alone, and says so when it is run.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *LATER})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in LATER:
            return super().get_command(ctx, cmd_name)
        module, attribute = LATER[cmd_name]
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name == module:
                return None
            return _broken(cmd_name, error)
        except Exception as error:
            return _broken(cmd_name, error)
        return command


def _broken(name: str, cause: Exception) -> click.Command:
    @click.command(
        name,
        help="(cannot be loaded)",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def command() -> None:
        raise EnvironmentProblem(
            f"vmmob {name} cannot be loaded: {type(cause).__name__}: {cause}",
            "install vmmobility with all that it depends on",
        )

    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vmmob")
def vmmob() -> None:
    """Move running virtual machines between routed racks without changing their IP addresses."""


for command in (
    check,
    config,
    drain,
    events,
    group,
    key,
    manager,
    move,
    napt,
    nve,
    router,
    server,
    show,
    token,
    trace,
    vm,
):
    vmmob.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 an error (told on standard error), 2 wrong usage."""
    output.FOR_PROGRAMS.set(False)
    try:
        # Commands return nothing; what click returns is the code with which one has exited.
        code = vmmob.main(args=arguments, prog_name="vmmob", standalone_mode=False)
        sys.exit(code or 0)
    except click.Abort:
        _fail("interrupted", "", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VmMobilityError as error:
        _fail(error.message, error.remedy)
    except BrokenPipeError:
        # The reader (`| head`) has gone.  What is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", "check the path and your rights")
    except Exception as error:
        if os.environ.get("VMMOB_TRACEBACK"):
            raise
        _fail(
            f"a fault of vmmob itself: {type(error).__name__}: {error}",
            "report it, with what VMMOB_TRACEBACK=1 shows",
        )


def _fail(message: str, remedy: str, code: int = 1) -> NoReturn:
    if output.FOR_PROGRAMS.get():
        click.echo(json.dumps({"error": message, "remedy": remedy}), err=True)
        sys.exit(code)
    click.echo(f"error: {message}", err=True)
    if remedy:
        click.echo(f"remedy: {remedy}", err=True)
    sys.exit(code)
