"""Parameters that several commands take: a VM's name, the daemons' sockets.

Rests on click; not here: the commands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from vmmobility.api.remote import remote_of
from vmmobility.cli import output
from vmmobility.wire.formats import check_name
from vmmobility.wire.values import VmKey

FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)

MANAGER_SOCKET = Path("/run/vmmobility/manager.sock")
NVE_SOCKET = Path("/run/vmmobility/nve.sock")
ROUTER_SOCKET = Path("/run/vmmobility/router.sock")
NAPT_SOCKET = Path("/run/vmmobility/napt.sock")


def _socket(envvar: str, default: Path, whose: str) -> Callable[[FC], FC]:
    return click.option(
        "--socket",
        "socket_path",
        envvar=envvar,
        default=default,
        show_default=True,
        show_envvar=True,
        type=click.Path(path_type=Path),
        help=f"{whose} API socket.",
    )


_manager_socket = _socket("VMMOB_SOCKET", MANAGER_SOCKET, "The manager's")


def manager_socket(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the manager is: `socket_path`, a socket's path, or a Remote where a URL is given.

    What stands on the command line wins over the environment.
    """

    @functools.wraps(command)
    def asked(
        *values: Any,
        socket_path: Path,
        url: str | None,
        token_file: Path | None,
        ca: Path | None,
        **more: Any,
    ) -> Any:
        if _is_typed("socket_path"):
            if _is_typed("url"):
                raise click.UsageError("--socket and --url both say where the manager is: give one")
            url = None
        place = socket_path if url is None else remote_of(url, token_file, ca)
        return command(*values, socket_path=place, **more)

    for option in (
        click.option(
            "--ca",
            envvar="VMMOB_CA",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Whose certificates --url may have (PEM); the system's authorities unless given.",
        ),
        click.option(
            "--token-file",
            envvar="VMMOB_TOKEN_FILE",
            show_envvar=True,
            type=click.Path(path_type=Path, dir_okay=False),
            help="The token for --url, alone in a file that nobody else can read.",
        ),
        click.option(
            "--url",
            envvar="VMMOB_URL",
            show_envvar=True,
            help="The manager as https://HOST:PORT, instead of its socket.",
        ),
        _manager_socket,
    ):
        asked = option(asked)
    return asked


def asks_manager(command: Callable[..., Any]) -> Callable[..., Any]:
    """What each command has that asks the manager: where it is, and --json (`json_output`)."""
    return manager_socket(output.as_json(command))


def _is_typed(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


nve_socket = _socket("VMMOB_NVE_SOCKET", NVE_SOCKET, "The NVE's")
router_socket = _socket("VMMOB_ROUTER_SOCKET", ROUTER_SOCKET, "The router's")
napt_socket = _socket("VMMOB_NAPT_SOCKET", NAPT_SOCKET, "The NAPT box's")
config_file = click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The daemon's TOML file.",
)
record_file = click.option(
    "--record",
    "record",
    type=click.Path(path_type=Path, resolve_path=True),
    help="Record all that the daemon hears, for `vmmob replay`: a new file, or a folder.  "
    "Addresses, names and definitions of VMs are in it; keys are not.",
)
vni_option = click.option(
    "--vni", type=click.IntRange(0, (1 << 24) - 1), help="Virtual network; VNI/VM says it too."
)


class PlainText(click.ParamType[Any]):
    """A value that a function reads from its text; its ValueError is wrong usage.

    name: how the text is written, for help and errors
    """

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(f"{value!r} is no {self.name}: {error}", param, ctx)


class _VmName(click.ParamType[VmKey]):
    name = "VM"

    def convert(
        self, value: str | VmKey, param: click.Parameter | None, ctx: click.Context | None
    ) -> VmKey:
        if isinstance(value, VmKey):
            return value
        vni, slash, vm_id = value.rpartition("/")
        if slash and not (vni.isascii() and vni.isdecimal() and int(vni[:10]) < 1 << 24):
            self.fail(f"{value!r} is neither VM nor VNI/VM", param, ctx)
        try:
            return VmKey(int(vni or 0), check_name(vm_id))
        except ValueError as error:
            self.fail(str(error), param, ctx)


VM_NAME = _VmName()


def chosen_vm(vm: VmKey, vni: int | None) -> VmKey:
    """The VM with --vni applied.  Wrong usage if both say a VNI, and not the same."""
    if vni is None or vni == vm.vni:
        return vm
    if vm.vni:
        raise click.UsageError(f"{vm} and --vni {vni} name different virtual networks")
    return VmKey(vni, vm.vm_id)
