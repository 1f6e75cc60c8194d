"""`vmmob` itself: its help, wrong usage, what starts a daemon, errors of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from tests.unit.cli.command_line import MANAGER_COMMANDS, NVE_COMMANDS, Vmmob
from vmmobility import __version__
from vmmobility.cli import main as cli
from vmmobility.errors import HypervisorError


def test_version_and_help(vmmob: Vmmob):
    assert __version__ in vmmob("--version").out
    assert "Move running virtual machines" in vmmob("--help").out
    result = CliRunner().invoke(cli.vmmob, ["vm", "--help"])
    assert result.exit_code == 0
    assert "list" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["vm", "show"],
        ["vm", "show", "a b"],
        ["vm", "show", "x/vm"],
        ["vm", "list", "-x"],
        ["vm", "show", "1/vm", "--vni", "2"],
        ["vm", "show", "vm1", "--vni", "-1"],
        ["move", "vm1"],
        ["move", "abort"],
        ["check", "--timeout", "0"],
        ["check", "--timeout", "4000"],
        ["vm", "onboard"],
        ["vm", "release"],
        ["nve", "expect"],
        ["move", "v", "n", "--timeout", "0"],
        ["move", "v", "n", "--timeout", "1.5"],
        ["move", "v", "n", "--timeout", "604801"],
        ["move", "v", "n", "--wait-timeout", "0"],
        ["move", "v", "n", "--on-timeout", "force"],
        ["move", "v", "n", "--timeout", "1", "--on-timeout", "abort", "--timeout-postcopy"],
        ["move", "v", "n", "--bandwidth", "0"],
        ["move", "v", "n", "--downtime", "60001"],
        ["move", "v", "n", "--copy-storage", "some"],
        ["move", "v", "n", "--copy-storage", "none", "--copy-storage-all"],
        ["nve", "run"],
        ["config", "init", "switch"],
    ],
)
def test_wrong_usage_is_2(vmmob: Vmmob, arguments: list[str]):
    ran = vmmob(*arguments)
    assert ran.code == 2
    assert "Error: " in ran.err


@pytest.mark.parametrize("words", [("move", "VM NVE"), ("drain", "NVE")])
def test_wrong_usage_leads_to_the_help_that_has_the_options(vmmob: Vmmob, words: tuple[str, str]):
    group, arguments = words
    wrong = vmmob(group, *arguments.split(), "--colour", "red")
    assert wrong.code == 2
    hint = f"vmmob {group} {arguments} --help"
    assert f"Try '{hint}' for help" in wrong.err
    shown = vmmob(*hint.split()[1:])
    assert shown.out.startswith(f"Usage: vmmob {group} {arguments} [OPTIONS]\n")
    assert "--wait" in shown.out


def test_errors_are_json_for_who_asks_for_json(vmmob: Vmmob, tmp_path: Path):
    ran = vmmob("vm", "list", "--json", "--socket", tmp_path / "none.sock")
    assert (ran.code, ran.out) == (1, "")
    assert set(json.loads(ran.err)) == {"error", "remedy"}
    assert vmmob("vm", "list", "--socket", tmp_path / "none.sock").err.startswith("error: ")


@pytest.mark.parametrize("command", [["manager", "run"], ["nve", "run"], ["nve", "flush"]])
def test_daemons_get_their_file(
    vmmob: Vmmob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
):
    import vmmobility.daemon

    calls: list[tuple[str, Path]] = []
    role, verb = command
    fake = SimpleNamespace(**{verb: lambda path, *_: calls.append((verb, path))})
    monkeypatch.setitem(sys.modules, f"vmmobility.daemon.{role}", fake)
    monkeypatch.setattr(vmmobility.daemon, role, fake, raising=False)
    assert vmmob(*command, "--config", tmp_path / "c.toml").code == 0
    assert calls == [(verb, tmp_path / "c.toml")]


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (HypervisorError("qemu is gone", "start it"), "error: qemu is gone\nremedy: start it\n"),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied\n"),
        (ZeroDivisionError("oops"), "error: a fault of vmmob itself: ZeroDivisionError: oops\n"),
        (KeyboardInterrupt(), "error: interrupted\n"),
    ],
)
def test_no_error_is_a_traceback(
    vmmob: Vmmob, monkeypatch: pytest.MonkeyPatch, raised: BaseException, line: str
):
    @click.command()
    def broken() -> None:
        raise raised

    monkeypatch.setitem(cli.vmmob.commands, "broken", broken)
    ran = vmmob("broken")
    assert ran.code == (130 if isinstance(raised, KeyboardInterrupt) else 1)
    assert ran.err.lstrip("\n").startswith(line)


def test_a_part_that_is_missing_or_broken_breaks_nothing_else(
    vmmob: Vmmob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setitem(cli.LATER, "lab", ("vmmobility.cli.never", "lab"))
    assert vmmob("--help").code == 0
    assert vmmob("lab", "run").code == 2
    (tmp_path / "broken_part.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.LATER, "lab", ("broken_part", "lab"))
    assert "cannot be loaded" in vmmob("--help").out
    ran = vmmob("lab", "run", "--report", "x")
    assert ran.code == 1
    assert "a_module_that_nobody_has" in ran.err


def test_python_m_and_a_reader_that_goes(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "vmmobility"]
    ran = subprocess.run(
        [*command, "vm", "list", "--socket", str(tmp_path / "none")],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        ran = subprocess.run(
            [*command, "config", "init", "nve"],
            stdout=gone, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
    assert ran.stderr == ""


@pytest.mark.parametrize("command", [*MANAGER_COMMANDS, *NVE_COMMANDS], ids=" ".join)
def test_no_daemon(vmmob: Vmmob, tmp_path: Path, command: list[str]):
    ran = vmmob(*command, "--socket", tmp_path / "none.sock")
    assert ran.code == 1
    assert ran.err.startswith(f"error: {tmp_path}/none.sock: no such socket\nremedy: start it")
