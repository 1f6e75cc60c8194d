"""Snapshots: when they are made, and a crash at every step, also one that loses all unsynced."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.unit.descriptors import descriptors_left
from vmmobility.errors import StoreError
from vmmobility.store import frames, journal
from vmmobility.store.journal import Journal


class Crash(BaseException):
    """The machine stops here."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "COMPACT_ABOVE", 4096)
    monkeypatch.setattr(journal, "SNAPSHOT_FRAME", 300)
    monkeypatch.setattr(journal, "ALLOCATE", 4096)


def batch(number: int) -> list[tuple[str, Any]]:
    return [(f"vm/{number % 7}", {"n": number, "pad": "x" * 100}), (f"old/{number - 3}", None),
            (f"old/{number}", number)]  # fmt: skip


def state_after(number: int) -> dict[str, Any]:
    model: dict[str, Any] = {}
    for step in range(number):
        for key, value in batch(step):
            model.pop(key, None) if value is None else model.update({key: value})
    return model


@pytest.mark.usefixtures("small")
def test_a_grown_journal_shrinks_and_keeps_its_state(tmp_path: Path):
    store = Journal.open(tmp_path)
    sizes = []
    for number in range(200):
        store.append(batch(number))
        assert store.load() == state_after(number + 1)
        sizes.append(len((tmp_path / "journal").read_bytes().rstrip(b"\0")))
    assert max(sizes) < 6000
    assert sum(after < before for before, after in pairwise(sizes)) > 3
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o600
    store.close()
    store = Journal.open(tmp_path)
    assert store.load() == state_after(200)
    assert not (tmp_path / "journal.new").exists()
    store.close()


@pytest.mark.usefixtures("small")
def test_a_large_live_state_is_left_alone(tmp_path: Path):
    store = Journal.open(tmp_path)
    inode = (tmp_path / "journal").stat().st_ino
    for number in range(100):
        store.append([(f"vm/{number}", "x" * 200)])
    assert (tmp_path / "journal").stat().st_ino == inode
    store.close()


@pytest.mark.usefixtures("small")
def test_a_cut_or_flipped_snapshot_is_never_taken_for_a_torn_write(tmp_path: Path):
    store = Journal.open(tmp_path)
    number = 0
    inode = (tmp_path / "journal").stat().st_ino
    while (tmp_path / "journal").stat().st_ino == inode:
        store.append(batch(number))
        number += 1
    store.close()
    data = (tmp_path / "journal").read_bytes().rstrip(b"\0")
    scan = frames.scan(data)
    assert scan.header.snapshot == len(data) - frames.HEADER_SIZE
    assert len(scan.frames) > 1
    for offset in range(len(data)):
        with pytest.raises(frames.Damage):
            frames.scan(data[:offset])
        flipped = bytearray(data)
        flipped[offset] ^= 0x10
        with pytest.raises(frames.Damage):
            frames.scan(bytes(flipped))


class Disk:
    """Follows what is durable: a file's octets at its last sync, a directory's names at its last.

    Stops the machine before, or right after, the system call with the chosen number.
    """

    CALLS = ("pwrite", "posix_fallocate", "fsync", "fdatasync", "rename", "ftruncate")

    def __init__(self, directory: Path, crash_at: int, after: bool) -> None:
        self.directory = directory
        self.crash_at, self.after = crash_at, after
        self.count = 0
        self.octets: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        for path in directory.iterdir():
            self.names[path.name] = path.stat().st_ino
            self.octets[path.stat().st_ino] = path.read_bytes()

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.count += 1
            if self.count == self.crash_at and not self.after:
                raise Crash
            result = real(*arguments)
            if name in ("fsync", "fdatasync"):
                self.synced(arguments[0])
            if self.count == self.crash_at:
                raise Crash
            return result

        return call

    def synced(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            if os.path.samestat(status, self.directory.stat()):
                self.names = {path.name: path.stat().st_ino for path in self.directory.iterdir()}
        else:
            self.octets[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def lose_power(self, target: Path) -> None:
        """What the disk holds if nothing but the synced has reached it."""
        target.mkdir()
        for name, inode in self.names.items():
            (target / name).write_bytes(self.octets.get(inode, b""))


@contextmanager
def watched(disk: Disk) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in Disk.CALLS:
            patch.setattr(os, name, disk.wrap(name, getattr(os, name)))
        yield


def opened(directory: Path) -> dict[str, Any]:
    store = Journal.open(directory)
    state = store.load()
    store.append([("still", "writable")])
    store.close()
    again = Journal.open(directory)
    assert again.load() == state | {"still": "writable"}
    again.close()
    return state


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_every_system_call(tmp_path: Path, after: bool):
    """Appends through one compaction: what was acknowledged is there, the rest whole or absent."""
    crash_at = 0
    crashed = True
    while crashed:
        crash_at += 1
        home = tmp_path / f"{crash_at}"
        store = Journal.open(home)
        for number in range(15):
            store.append(batch(number))
        disk = Disk(home, crash_at, after)
        acknowledged, crashed = 15, False
        inode = (home / "journal").stat().st_ino
        try:
            with watched(disk):
                for number in range(15, 32):
                    store.append(batch(number))
                    acknowledged = number + 1
        except Crash:
            crashed = True
        else:
            assert (home / "journal").stat().st_ino != inode  # a compaction was on the way
        shutil.copytree(home, tmp_path / f"{crash_at}-kept")
        disk.lose_power(tmp_path / f"{crash_at}-lost")
        store.close()
        expected = [state_after(acknowledged), state_after(acknowledged + 1)]
        assert opened(tmp_path / f"{crash_at}-kept") in expected
        assert opened(tmp_path / f"{crash_at}-lost") in expected


def test_a_crash_while_the_journal_is_first_made(tmp_path: Path):
    for crash_at in range(1, 7):
        for after in (False, True):
            home = tmp_path / f"{crash_at}-{after}"
            home.mkdir()
            disk = Disk(home, crash_at, after)
            try:
                with watched(disk):
                    Journal.open(home).close()
            except Crash:
                pass
            disk.lose_power(tmp_path / f"{crash_at}-{after}-lost")
            assert opened(home) == {}
            assert opened(tmp_path / f"{crash_at}-{after}-lost") == {}


def failing(number: int, when: Callable[[str], bool]) -> Callable[..., Any]:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if when(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    return fsync


@pytest.mark.usefixtures("small")
def test_a_full_disk_puts_a_snapshot_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Journal.open(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.ENOSPC, lambda path: path.endswith(".new")))
        for number in range(40):
            store.append(batch(number))
        assert not (tmp_path / "journal.new").exists()
    grown = (tmp_path / "journal").stat().st_ino
    for number in range(40, 120):
        store.append(batch(number))
    assert (tmp_path / "journal").stat().st_ino != grown
    store.close()
    assert Journal.open(tmp_path).load() == state_after(120)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("spare", [0, 1])
def test_too_few_descriptors_put_a_snapshot_off(tmp_path: Path, spare: int):
    """Others (the API's connections) have taken them; that must not end the daemon."""
    store = Journal.open(tmp_path)
    grown = (tmp_path / "journal").stat().st_ino
    with descriptors_left(spare):
        for number in range(40):
            store.append(batch(number))
    assert (tmp_path / "journal").stat().st_ino == grown
    assert not (tmp_path / "journal.new").exists()
    for number in range(40, 120):
        store.append(batch(number))
    assert (tmp_path / "journal").stat().st_ino != grown
    store.close()
    assert Journal.open(tmp_path).load() == state_after(120)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("number", "suffix"), [(errno.EIO, ".new"), (errno.EIO, "state"), (errno.ENOSPC, "state")]
)
def test_a_failing_disk_ends_writing_but_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, suffix: str
):
    store = Journal.open(tmp_path / "state")
    count = -1

    def fill() -> None:
        nonlocal count
        for count in range(100):
            store.append(batch(count))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number, lambda path: path.endswith(suffix)))
        with pytest.raises(StoreError):
            fill()
    with pytest.raises(StoreError, match="refuses"):
        store.append(batch(count))
    store.close()
    assert opened(tmp_path / "state") == state_after(count + 1)
