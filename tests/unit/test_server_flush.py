"""`vmmob server flush`: what it refuses.  The kernel's part is a stand-in that notes its end."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from vmmobility.daemon import server
from vmmobility.daemon.state_lock import alone
from vmmobility.drivers.hypervisor.definition import encode
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.drivers.hypervisor.process import GuestFolder
from vmmobility.drivers.linux.survivors import HeldTap
from vmmobility.errors import StoreError
from vmmobility.wire.values import Interface, VmKey

PROGRAM = "import sys; print('up', flush=True); sys.stdin.read()"
VM = VmKey(0, "web1")
INTERFACE = Interface(b"\x02\0\0\0\0\1", (ip_network("10.1.0.5/32"),))


class Host:
    """A server's host; taps: those that somebody holds."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.file = folder / "server.toml"
        self.file.write_text(
            f'[server]\nname = "s1"\nnve = "a"\naddress = "10.9.1.2"\nnve_address = "10.9.1.1"\n'
            f'state_dir = "{self.state}"\nkeys_dir = "{folder}"\n'
        )
        self.taps: list[HeldTap] = []
        self.removed = 0

    def flush(self) -> str:
        """What is wrong, or ""."""
        try:
            server.flush(self.file)
        except StoreError as error:
            return error.message if error.remedy else "no remedy"
        return ""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)

    class Circuits:
        def __init__(self, *ends: object) -> None: ...
        async def start(self) -> None: ...
        def close(self) -> None: ...
        async def remove_all(self) -> None:
            made.removed += 1

    monkeypatch.setattr(server, "ServerCircuits", Circuits)
    monkeypatch.setattr(server, "held_taps", lambda: made.taps)
    return made


def test_where_nobody_lives_all_is_removed_again_and_again(host: Host) -> None:
    assert host.flush() == host.flush() == ""
    assert host.removed == 2


def test_not_while_the_agent_runs(host: Host) -> None:
    with alone(host.state):
        assert "another process holds this folder" in host.flush()
    assert host.removed == 0
    assert host.flush() == ""


def test_not_while_a_qemu_of_the_state_folder_lives(host: Host) -> None:
    folder = GuestFolder.of(host.state / "guests", VM)
    folder.path.mkdir(parents=True)
    definition = VmDefinition(VM, "qemu", (INTERFACE,), machine={"kernel": "/k"})
    (folder.path / "definition.json").write_bytes(encode(definition))
    words = [sys.executable, "-c", PROGRAM, str(folder.pid_file)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdout is not None
        assert qemu.stdout.readline()  # until it runs it may have no command line
        folder.pid_file.write_text(str(qemu.pid))
        assert host.flush() == "guests live on this server: web1"
        assert host.removed == 0
        qemu.communicate()
    assert host.flush() == ""


def test_not_while_anybody_holds_a_tap(host: Host) -> None:
    host.taps = [HeldTap("vmo1", (77,))]
    assert host.flush() == "guests live on this server: vmo1 (process 77)"
    assert host.removed == 0
