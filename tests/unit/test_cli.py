"""`vmmob`, from arguments to exit code: against fakes behind real sockets, and on real files."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from starlette.types import ASGIApp

from tests.unit.fake_services import ALARM, BINDING, DIFFERENCE, FakeManager, FakeNve
from vmmobility import __version__
from vmmobility.api.manager_api import manager_api
from vmmobility.api.nve_api import nve_api
from vmmobility.api.server import serve
from vmmobility.cli import main as cli
from vmmobility.errors import HypervisorError

MANAGER_COMMANDS = (["vm", "list"], ["vm", "show", "vm1"], ["show", "bindings"],
                    ["show", "nves"], ["show", "moves"], ["manager", "status"],
                    ["show", "onboarded"], ["show", "alarms"], ["check"],
                    ["move", "vm1", "nve-b"])  # fmt: skip
NVE_COMMANDS = (["nve", "list"], ["nve", "status"], ["nve", "check"], ["nve", "alarms"],
                ["nve", "stop", "vm1"])  # fmt: skip


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def vmmob(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Ran(int(end.value.code or 0), out, err)

    return run


@contextmanager
def served(app: ASGIApp, path: Path) -> Iterator[Path]:
    """The API at this path, in a thread of its own."""
    ready = threading.Event()
    ends: list[Callable[[], object]] = []

    async def run() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        async with serve(app, path):
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield path
    finally:
        for end in ends:
            end()
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def service() -> FakeManager:
    return FakeManager()


@pytest.fixture
def manager(
    service: FakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeManager]:
    with served(manager_api(service), tmp_path / "manager.sock") as path:
        monkeypatch.setenv("VMMOB_SOCKET", str(path))
        yield service


@pytest.fixture
def nve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNve]:
    service = FakeNve()
    with served(nve_api(service), tmp_path / "nve.sock") as path:
        monkeypatch.setenv("VMMOB_NVE_SOCKET", str(path))
        yield service


# --- the manager's commands ---


@pytest.mark.usefixtures("manager")
def test_tables(vmmob: Callable[..., Ran]):
    listed = vmmob("vm", "list")
    assert listed.code == 0
    heading, row = listed.out.splitlines()
    assert heading.split() == ["VM", "NVE", "STATE", "ADDRESSES", "LAST", "MOVE"]
    assert row.split() == ["vm1", "nve-a", "bound", "10.1.0.5,", "fd01::5", "-"]
    shown = vmmob("vm", "show", "vm1").out
    assert "52:54:00:00:00:01 10.1.0.5/32, fd01::5/128" in shown
    assert "nve-0 (redirects)" in shown
    assert "nve-a" in vmmob("show", "nves").out
    assert vmmob("show", "nves").out.splitlines()[0].split()[-2:] == ["PROVEN", "VMS"]
    assert "99.5" in vmmob("show", "bindings").out
    assert "drift.route=2" in vmmob("manager", "status").out
    vmmob("move", "vm1", "nve-b")
    assert vmmob("show", "moves").out.splitlines()[1].split()[:4] == ["m1", "vm1", "nve-a", "nve-b"]
    assert "nve-a -> nve-b (requested)" in vmmob("vm", "list").out


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize("command", MANAGER_COMMANDS, ids=" ".join)
def test_every_managers_command_has_json(vmmob: Callable[..., Ran], command: list[str]):
    ran = vmmob(*command, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert isinstance(ran.json, list | dict)


@pytest.mark.usefixtures("manager")
def test_json_is_the_apis_answer(vmmob: Callable[..., Ran]):
    assert vmmob("show", "bindings", "--json").json == [BINDING]
    assert vmmob("vm", "show", "0/vm1", "--json").json == {**BINDING, "move": None}


@pytest.mark.usefixtures("manager")
def test_names_in_brackets_are_no_markup(vmmob: Callable[..., Ran], service: FakeManager):
    service.held = [{**BINDING, "vm": "[red]vm[/red]", "vni": 7, "state": "x" * 300}]
    out = vmmob("vm", "list").out
    assert "7/[red]vm[/red]" in out
    assert "x" * 300 in out


@pytest.mark.usefixtures("manager")
def test_errors_are_two_lines(vmmob: Callable[..., Ran]):
    ran = vmmob("vm", "show", "other")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == ("error: no binding for VM other\nremedy: list them with `vmmob vm list`\n")
    assert vmmob("vm", "show", "vm1", "--vni", "3").err.startswith("error: no binding for VM 3/vm1")
    assert vmmob("move", "vm1", "nve-a").code == 1


@pytest.mark.parametrize("command", [*MANAGER_COMMANDS, *NVE_COMMANDS], ids=" ".join)
def test_no_daemon(vmmob: Callable[..., Ran], tmp_path: Path, command: list[str]):
    ran = vmmob(*command, "--socket", tmp_path / "none.sock")
    assert ran.code == 1
    assert ran.err.startswith(f"error: {tmp_path}/none.sock: no such socket\nremedy: start it")


# --- move ---


PHASES = [{"name": "requested", "at_ms": 0.0}, {"name": "prepared", "at_ms": 12.5}]


def test_a_move_that_is_waited_for(vmmob: Callable[..., Ran], manager: FakeManager):
    manager.endings = [
        {"state": "prepared", "phases": PHASES},
        {"state": "copying", "phases": [*PHASES, {"name": "copying", "at_ms": 20.0}]},
        {
            "state": "done",
            "ok": True,
            "phases": [*PHASES, {"name": "done", "at_ms": 30.0}, {"name": "end", "at_ms": 31.0}],
            "measured": {"downtime_ms": 12.5},
        },
    ]
    ran = vmmob("move", "vm1", "nve-b", "--wait")
    assert (ran.code, ran.err) == (0, "")
    first, *lines, last = ran.out.splitlines()
    assert first == "move m1: vm1, nve-a -> nve-b"
    # Each phase once, in order, whenever it was first seen.
    assert [line.split()[-1] for line in lines] == ["requested", "prepared", "copying", "end"]
    assert last.split() == ["downtime_ms", "12.5"]


def test_what_a_move_waits_for_and_what_it_leaves_open_is_said(
    vmmob: Callable[..., Ran], manager: FakeManager, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vmmobility.cli.move.WAITING_S", 0.0)
    reason = "a previous NVE has not yet answered"
    manager.endings = [
        {"state": "turning-back"},
        {"state": "turning-back"},
        {"state": "done", "ok": True, "reason": reason},
    ]
    ran = vmmob("move", "vm1", "nve-b", "--wait")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[-1] for line in ran.out.splitlines()].count("waiting-turning-back") == 1
    assert f"note: {reason}" in ran.out.splitlines()


def test_a_move_that_fails(vmmob: Callable[..., Ran], manager: FakeManager):
    manager.endings = [{"state": "aborted", "ok": False, "reason": "destination is full"}]
    ran = vmmob("move", "vm1", "nve-b", "--wait", "--json")
    assert ran.code == 1
    assert ran.json["ok"] is False
    assert ran.err.startswith("error: the move of vm1 to nve-b failed: destination is full\nremedy")


@pytest.mark.usefixtures("manager")
def test_a_move_that_takes_too_long(vmmob: Callable[..., Ran]):
    ran = vmmob("move", "vm1", "nve-b", "--timeout", "0.05")
    assert ran.code == 1
    assert "has not ended within 0.05 s: it is requested" in ran.err


@pytest.mark.usefixtures("manager")
def test_a_move_is_not_waited_for_unasked(vmmob: Callable[..., Ran]):
    ran = vmmob("move", "vm1", "nve-b")
    assert (ran.code, ran.out) == (0, "move m1: vm1, nve-a -> nve-b\n")


def test_a_move_is_given_up(vmmob: Callable[..., Ran], manager: FakeManager):
    vmmob("move", "vm1", "nve-b")
    assert vmmob("move", "abort", "m1").out == "move m1: vm1, nve-a -> nve-b: turning-back\n"
    manager.endings = [{"state": "aborted", "ok": False, "reason": "given up"}]
    ran = vmmob("move", "abort", "vm1", "--wait", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["state"] == "aborted"
    # Ended, it is known by its ID alone.
    assert "error: move m1 is aborted" in vmmob("move", "abort", "m1").err
    none = vmmob("move", "abort", "vm1")
    assert (none.code, none.out) == (1, "")
    assert "error: no move vm1, nor is a VM of that name being moved\nremedy: list" in none.err


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ({"state": "done", "ok": True}, "was too far: vm1 is at nve-b"),
        ({"state": "failed", "ok": False, "reason": "it is gone"}, "failed: it is gone"),
    ],
)
def test_a_move_that_cannot_be_given_up_any_more(
    vmmob: Callable[..., Ran], manager: FakeManager, ending: dict[str, Any], words: str
):
    vmmob("move", "vm1", "nve-b")
    manager.endings = [ending]
    ran = vmmob("move", "abort", "0/vm1", "--wait")
    assert ran.code == 1
    assert words in ran.err


@pytest.mark.usefixtures("manager")
def test_a_vm_may_be_called_abort(vmmob: Callable[..., Ran], service: FakeManager):
    service.held = [{**BINDING, "vm": "abort"}]
    assert vmmob("move", "0/abort", "nve-b").out == "move m1: abort, nve-a -> nve-b\n"
    assert vmmob("move", "abort", "abort").out.endswith(": turning-back\n")
    assert vmmob("move", "--json", "0/abort", "nve-b").json["to"] == "nve-b"
    for help in (("move", "--help"), ("move", "vm1", "--help"), ("move", "abort", "--help")):
        assert "Usage: vmmob move " in vmmob(*help).out


# --- the NVE's commands ---


TOML = """
vm_id = "vm1"
kind = "qemu"
vcpus = 2
memory_mib = 64
[machine]
kernel = "/boot/vmlinuz"
[[interface]]
mac = "52:54:00:00:00:01"
addresses = ["10.1.0.5", "fd01::5"]
"""


def test_a_vm_is_started_and_stopped(vmmob: Callable[..., Ran], nve: FakeNve, tmp_path: Path):
    (tmp_path / "vm.toml").write_text(TOML)
    ran = vmmob("nve", "start", tmp_path / "vm.toml")
    assert (ran.code, ran.out) == (0, "vm1: serving, epoch 1\n")
    body = {
        "vm_id": "vm1",
        "kind": "qemu",
        "vcpus": 2,
        "memory_mib": 64,
        "machine": {"kernel": "/boot/vmlinuz"},
        "interfaces": [{"mac": "52:54:00:00:00:01", "addresses": ["10.1.0.5", "fd01::5"]}],
    }
    assert nve.definitions == [body]
    (tmp_path / "vm.json").write_text(json.dumps(body))
    assert vmmob("nve", "start", tmp_path / "vm.json", "--json").json["phase"] == "serving"
    assert nve.definitions == [body, body]
    assert "delivered=5" in vmmob("nve", "list").out
    assert "tcg" in vmmob("nve", "status").out
    for command in NVE_COMMANDS:
        assert vmmob(*command, "--json").code == 0
    assert vmmob("nve", "stop", "vm1").code == 1
    vmmob("nve", "start", tmp_path / "vm.toml")
    assert vmmob("nve", "stop", "vm1").out == "vm1: stopped\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [("vm.toml", "vm_id"), ("vm.json", "{"), ("vm.json", "[]"), ("vm.toml", 'kind = "x"'),
     ("vm.toml", "vm_id = 7"), ("vm.json", "[" * 100_000), ("none", None)],
)  # fmt: skip
def test_a_wrong_definition(vmmob: Callable[..., Ran], tmp_path: Path, name: str, text: str | None):
    if text is not None:
        (tmp_path / name).write_text(text)
    ran = vmmob("nve", "start", tmp_path / name)
    assert ran.code == 1
    assert f"error: {tmp_path / name}: " in ran.err
    assert "remedy: " in ran.err


# --- keys and configuration ---


def test_keys_from_new_to_retire(vmmob: Callable[..., Ran], tmp_path: Path):
    directory = tmp_path / "keys"
    file = directory / "manager--nve-a.toml"
    make = ("key", "new", "nve-a:nve", "manager:manager", "--dir", directory)
    assert vmmob(*make).out == f"{file}: made; copy it to both nodes\n"
    assert vmmob(*make).out == f"{file}: is there, kept\n"
    assert vmmob(*make, "--json").json == {"file": str(file), "made": False}
    assert vmmob("key", "retire", file).code == 1
    for step in ("rotate", "activate", "retire"):
        ran = vmmob("key", step, file)
        assert ran.code == 0
        assert "next: " in ran.out
    listed = vmmob("key", "list", "--dir", directory)
    assert "manager:manager, nve-a:nve" in listed.out
    (pair,) = vmmob("key", "list", "--dir", directory, "--json").json
    assert (pair["signs"], [key["id"] for key in pair["keys"]]) == (2, [2])
    secret = file.read_text().partition('secret = "')[2][:64]
    assert secret not in listed.out + json.dumps(pair)
    assert vmmob("key", "new", "nve-a:nve", "manager:napt", "--dir", directory).code == 1


@pytest.mark.parametrize("role", ["manager", "nve"])
def test_configuration(vmmob: Callable[..., Ran], tmp_path: Path, role: str):
    file = tmp_path / "c.toml"
    text = vmmob("config", "init", role).out
    assert vmmob("config", "init", role, "--output", file).code == 0
    assert file.read_text() == text
    assert vmmob("config", "init", role, "--output", file).code == 1
    assert f"configuration of {role}" in vmmob("config", "check", file).out
    assert "lifetime_s" in vmmob("config", "show", file).out
    shown = vmmob("config", "show", file, "--json").json
    assert (shown["role"], shown["port"]) == (role, 8747)
    file.write_text(text.replace("[timers]", "[timrs]"))
    ran = vmmob("config", "check", file)
    assert ran.code == 1
    assert "did you mean timers?" in ran.err


# --- the command itself ---


def test_version_and_help(vmmob: Callable[..., Ran]):
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
        ["nve", "run"],
        ["config", "init", "napt"],
    ],
)
def test_wrong_usage_is_2(vmmob: Callable[..., Ran], arguments: list[str]):
    ran = vmmob(*arguments)
    assert ran.code == 2
    assert "Error: " in ran.err


@pytest.mark.parametrize("command", [["manager", "run"], ["nve", "run"], ["nve", "flush"]])
def test_daemons_get_their_file(
    vmmob: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
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
    vmmob: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, raised: BaseException, line: str
):
    @click.command()
    def broken() -> None:
        raise raised

    monkeypatch.setitem(cli.vmmob.commands, "broken", broken)
    ran = vmmob("broken")
    assert ran.code == (130 if isinstance(raised, KeyboardInterrupt) else 1)
    assert ran.err.lstrip("\n").startswith(line)


def test_a_part_that_is_missing_or_broken_breaks_nothing_else(
    vmmob: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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


def test_a_vm_is_released_only_with_the_operators_word(
    vmmob: Callable[..., Ran], manager: FakeManager
):
    manager.held = [{**BINDING, "state": "expired"}]
    refused = vmmob("vm", "release", "vm1")
    assert refused.code == 1
    assert "--fenced NVE" in refused.err
    assert "is at nve-a, not at nve-b" in vmmob("vm", "release", "vm1", "--fenced", "nve-b").err
    assert manager.held[0]["state"] == "expired"
    released = vmmob("vm", "release", "vm1", "--fenced", "nve-a")
    assert released.out == "vm1 is released from nve-a: start it elsewhere\n"
    assert manager.held[0]["state"] == "released"
    assert "lease lives" in vmmob("vm", "release", "vm1", "--fenced", "nve-a").err
    manager.held = [{**BINDING, "state": "moving"}]
    assert "waited for no more" in vmmob("vm", "release", "vm1", "--fenced", "nve-a").out
    assert "may still run the VM" in " ".join(vmmob("vm", "release", "--help").out.split())
    assert vmmob("vm", "release", "vm1", "--fenced").code == 2  # whose host, must be said


def test_a_frozen_vm_is_thawed(vmmob: Callable[..., Ran], manager: FakeManager):
    manager.held = [{**BINDING, "state": "frozen"}]
    assert "frozen" in vmmob("vm", "list").out
    assert "frozen" in vmmob("show", "bindings").out
    thawed = vmmob("vm", "release", "vm1")
    assert thawed.out == "vm1 is thawed: it is serving at nve-a, and NVEs may register it again\n"
    manager.held = [{**BINDING, "state": "frozen"}]
    assert vmmob("vm", "release", "vm1", "--json").json["state"] == "serving"


# --- comparing ---


CHECKS = [
    (("check",), "3 bindings and redirects compared, ", ", 0 NVEs did not answer"),
    (("nve", "check"), "1 VMs compared, ", ""),
]


@pytest.mark.parametrize(("command", "before", "after"), CHECKS)
def test_a_check_that_finds_nothing(
    vmmob: Callable[..., Ran],
    manager: FakeManager,
    nve: FakeNve,
    command: tuple[str, ...],
    before: str,
    after: str,
):
    ran = vmmob(*command)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{before}0 differences (0 repaired){after}\n"
    ran = vmmob(*command, "--json")
    assert (ran.code, ran.json["drift"]) == (0, [])


@pytest.mark.parametrize(("command", "before", "after"), CHECKS)
def test_a_check_that_finds_a_difference(
    vmmob: Callable[..., Ran],
    manager: FakeManager,
    nve: FakeNve,
    command: tuple[str, ...],
    before: str,
    after: str,
):
    drift = [DIFFERENCE, {**DIFFERENCE, "what": "guest", "repaired": False}]
    for service in (manager, nve):
        service.compared = {**service.compared, "drift": drift}
    ran = vmmob(*command)
    assert (ran.code, ran.err) == (1, "")
    heading, first, second, last = ran.out.splitlines()
    assert heading.split() == ["VM", "NVE", "WHAT", "EXPECTED", "FOUND", "REPAIRED"]
    assert first.split() == ["vm1", "nve-a", "route", "10.1.0.5/32", "dev", "vmt0.0", "none", "yes"]
    assert second.split()[-1] == "no"
    assert last == f"{before}2 differences (1 repaired){after}"
    ran = vmmob(*command, "--json")
    assert (ran.code, ran.err) == (1, "")
    assert ran.json["drift"] == drift


def test_a_check_that_is_not_answered(vmmob: Callable[..., Ran], manager: FakeManager):
    manager.compared = {**manager.compared, "unanswered": ["nve-b", "nve-c"]}
    ran = vmmob("check")
    assert ran.code == 1
    assert ran.out.endswith(", 2 NVEs did not answer: nve-b, nve-c\n")
    assert vmmob("check", "--json").code == 1


def test_a_check_that_takes_long_says_so(
    vmmob: Callable[..., Ran], manager: FakeManager, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vmmobility.cli.comparison.SILENT_S", 0.05)
    manager.pause_s = 1.5
    ran = vmmob("check", "--json")
    assert (ran.code, ran.json["checked"]) == (0, 3)
    assert ran.err.startswith("asking the NVEs … 0 s\n")
    ran = vmmob("check", "--timeout", "0.5")
    assert ran.code == 1
    assert "error: not ended within 0.5 s\nremedy: ask with a longer --timeout\n" in ran.err
    assert "1: something differs" in " ".join(vmmob("check", "--help").out.split())


# --- alarms ---


def test_alarms(vmmob: Callable[..., Ran], manager: FakeManager, nve: FakeNve):
    for command, service in ((("show", "alarms"), manager), (("nve", "alarms"), nve)):
        assert vmmob(*command).out == "no alarms\n"
        service.raised = [ALARM]
        heading, row = vmmob(*command).out.splitlines()
        assert heading.split() == ["ALARM", "VM", "NVE", "FOR", "S", "WHAT", "REMEDY"]
        assert row.split()[:4] == ["binding.frozen", "vm1", "nve-a", "-"]
        assert vmmob(*command, "--json").json == [ALARM]


# --- strict mode ---


def test_a_vm_is_onboarded(vmmob: Callable[..., Ran], manager: FakeManager, tmp_path: Path):
    file = tmp_path / "vm.toml"
    file.write_text(TOML)
    assert vmmob("vm", "onboard", file).out == "vm1: onboarded at any NVE\n"
    ran = vmmob("vm", "onboard", file, "--nve", "nve-a", "--nve", "nve-b")
    assert ran.out == "vm1: onboarded at nve-a, nve-b\n"
    heading, row = vmmob("show", "onboarded").out.splitlines()
    assert heading.split() == ["VM", "MACS", "ADDRESSES", "NVES"]
    assert row.split() == ["vm1", "52:54:00:00:00:01", "10.1.0.5,", "fd01::5", "nve-a,", "nve-b"]
    (record,) = vmmob("show", "onboarded", "--json").json
    assert record["interfaces"] == [
        {"mac": "52:54:00:00:00:01", "addresses": ["10.1.0.5", "fd01::5"]}
    ]
    assert vmmob("vm", "offboard", "vm1").out == "vm1: offboarded\n"
    assert vmmob("show", "onboarded", "--json").json == []
    again = vmmob("vm", "offboard", "vm1")
    assert (again.code, again.out) == (1, "")
    assert "error: VM vm1 is not onboarded\nremedy: " in again.err


@pytest.mark.usefixtures("manager")
def test_a_vm_that_cannot_be_onboarded(vmmob: Callable[..., Ran], tmp_path: Path):
    file = tmp_path / "vm.toml"
    file.write_text('vm_id = "vm1"')
    assert "at least one [[interface]]" in vmmob("vm", "onboard", file).err
    file.write_text(TOML)
    assert "no NVE nowhere" in vmmob("vm", "onboard", file, "--nve", "nowhere").err
    assert "no NVE-ID" in vmmob("vm", "onboard", file, "--nve", "a b").err
    assert "no VNI" in vmmob("vm", "onboard", _with(file, 'vni = "x"')).err
    assert "cannot be read" in vmmob("vm", "onboard", tmp_path / "none").err


def _with(file: Path, line: str) -> Path:
    file.write_text(f"{line}\n{file.read_text()}")
    return file


# --- guests of other hands ---


def test_a_guest_is_expected_and_forgotten(vmmob: Callable[..., Ran], nve: FakeNve, tmp_path: Path):
    file = tmp_path / "vm.toml"
    file.write_text(TOML)
    refused = vmmob("nve", "expect", file)
    assert refused.code == 1
    assert "vmmob nve start" in refused.err
    file.write_text(TOML.replace('"qemu"', '"external"'))
    heading, row = vmmob("nve", "expect", file).out.splitlines()
    assert heading.split() == ["VM", "PHASE", "PORTS"]
    assert row.split() == ["vm1", "expected", "vmt0.0"]
    assert vmmob("nve", "expect", file, "--json").json["ports"] == ["vmt0.0"]
    assert vmmob("nve", "list").out.splitlines()[1].split()[:2] == ["vm1", "expected"]
    assert vmmob("nve", "forget", "vm1").out == "vm1: expected no longer\n"
    assert vmmob("nve", "forget", "vm1").code == 1
    vmmob("nve", "expect", file)
    assert vmmob("nve", "forget", "vm1", "--json").json["vm"] == "vm1"
