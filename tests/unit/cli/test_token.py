"""`vmmob token`, and commands that ask a manager by its URL."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.command_line import Vmmob
from tests.unit.tcp_api import LOOPBACKS, TLS, TcpApi, tcp_api
from vmmobility.api.declared import ApiRole
from vmmobility.api.remote import read_token
from vmmobility.api.tokens import PREFIX


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpApi]:
    with tcp_api(tmp_path_factory.mktemp("tls"), tls=True) as api:
        yield api


def test_tokens_by_the_command_line(vmmob: Vmmob, tmp_path: Path):
    file = ("--file", tmp_path / "tokens")
    made = vmmob("token", "new", "ci", "--role", "operate", "--expires", "30d", *file)
    assert (made.code, made.out.startswith(PREFIX)) == (0, True)
    heading, row = vmmob("token", "list", *file).out.splitlines()
    assert heading.split() == ["TOKEN", "ROLE", "MADE", "ENDS", "COUNTS"]
    assert (row.split()[:2], row.split()[-1]) == (["ci", "operate"], "yes")
    [listed] = vmmob("token", "list", "--json", *file).json
    assert listed["expires_s"] - listed["created_s"] == 30 * 86400
    assert "token" not in listed
    assert vmmob("token", "new", "x", "--role", "read", "--json", *file).json["token"]
    assert "there is a token ci already" in vmmob("token", "new", "ci", "--role", "read", *file).err
    assert vmmob("token", "new", "a b", "--role", "read", *file).code == 2
    assert vmmob("token", "new", "c", "--role", "read", "--expires", "soon", *file).code == 2
    assert vmmob("token", "revoke", "ci", *file).out == "ci is revoked\n"
    assert vmmob("token", "revoke", "ci", *file).code == 1


def test_help_hides_nothing_that_a_role_may(vmmob: Vmmob):
    text = " ".join(vmmob("token", "new", "--help").out.split())
    for role in ApiRole:
        assert f"{role.text}: {role.may}." in text
    assert "delete any VM" in ApiRole.OPERATE.may


def test_a_token_into_a_file(vmmob: Vmmob, tmp_path: Path):
    file, target = ("--file", tmp_path / "tokens"), tmp_path / "ci.token"
    made = vmmob("token", "new", "ci", "--role", "read", "--output", target, *file)
    assert (made.code, made.out) == (0, f"ci: written to {target}\n")
    assert read_token(target).startswith(PREFIX)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    again = vmmob("token", "new", "other", "--role", "read", "--output", target, *file)
    assert (again.code, "is there already" in again.err) == (1, True)
    assert "other" not in vmmob("token", "list", *file).out
    target.unlink()
    assert vmmob("token", "new", "ci", "--role", "read", "--output", target, *file).code == 1
    assert not target.exists()
    row = vmmob("token", "new", "b", "--role", "read", "--output", target, "--json", *file).json
    assert ("token" in row, row["output"]) == (False, str(target))


@pytest.mark.parametrize("address", LOOPBACKS)
def test_commands_by_a_url(vmmob: Vmmob, tls: TcpApi, tmp_path: Path, address: str):
    file = tmp_path / "token"
    file.write_text(tls.secrets["read"] + "\n")
    file.chmod(0o600)
    where: tuple[Any, ...] = (
        "--url",
        tls.url(address),
        "--token-file",
        file,
        "--ca",
        TLS / "ca.pem",
    )
    assert "nve-a" in vmmob("show", "nves", *where).out
    assert "error: POST /v1/moves needs the role operate" in vmmob("move", "vm1", "b", *where).err
    file.chmod(0o644)
    assert "others can read" in vmmob("show", "nves", *where).err


def test_what_is_typed_wins_over_the_environment(
    vmmob: Vmmob, tls: TcpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "token"
    file.write_text(tls.secrets["read"])
    file.chmod(0o600)
    monkeypatch.setenv("VMMOB_URL", "https://nobody.invalid:1")
    monkeypatch.setenv("VMMOB_TOKEN_FILE", str(file))
    monkeypatch.setenv("VMMOB_CA", str(TLS / "ca.pem"))
    assert "nobody.invalid" in vmmob("show", "nves").err
    assert "nve-a" in vmmob("show", "nves", "--socket", tls.socket).out
    monkeypatch.setenv("VMMOB_SOCKET", str(tmp_path / "nothing"))
    assert "nve-a" in vmmob("show", "nves", "--url", tls.url()).out
    both = vmmob("show", "nves", "--url", tls.url(), "--socket", tls.socket)
    assert both.code == 2
    assert "--socket and --url" in both.err
