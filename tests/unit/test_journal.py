"""The journal file: recovery at every octet, refusal of damage, the lock, preallocation."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmobility.errors import StoreError
from vmmobility.store import frames, journal
from vmmobility.store.journal import Journal

BATCHES: list[list[tuple[str, Any]]] = [
    [("a", 1)],
    [("b", {"x": [1, 2]}), ("a", None)],
    [("c", "text"), ("a", 5)],
]
STATES: list[dict[str, Any]] = [
    {},
    {"a": 1},
    {"b": {"x": [1, 2]}},
    {"b": {"x": [1, 2]}, "c": "text", "a": 5},
]


def written(directory: Path) -> tuple[bytes, list[int]]:
    """A journal of BATCHES without its preallocated zeros, and where each frame ends."""
    store = Journal.open(directory)
    for batch in BATCHES:
        store.append(batch)
    store.close()
    data = (directory / "journal").read_bytes().rstrip(b"\0")
    scan = frames.scan(data)
    return data, [frames.HEADER_SIZE, *(frame.end for frame in scan.frames)]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    return written(tmp_path_factory.mktemp("sample"))


def state_of(data: bytes) -> tuple[dict[str, Any], int]:
    """The folded state of these octets and how many were dropped, without files."""
    scan = frames.scan(data)
    state: dict[str, Any] = {}
    for frame in scan.frames:
        for key, value in frames.changes_of(frame):
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
    return {key: json.loads(value) for key, value in state.items()}, scan.dropped


@pytest.mark.parametrize("padding", [0, 100])
def test_cut_at_every_octet_gives_the_frames_before(sample: tuple[bytes, list[int]], padding: int):
    data, ends = sample
    for length in range(frames.HEADER_SIZE, len(data) + 1):
        whole = sum(end <= length for end in ends) - 1
        state, dropped = state_of(data[:length] + bytes(padding))
        assert state == STATES[whole], length
        assert dropped == len(data[:length].rstrip(b"\0")) - ends[whole] or dropped == 0


def test_cut_in_the_header_is_refused(sample: tuple[bytes, list[int]]):
    for length in range(frames.HEADER_SIZE):
        with pytest.raises(frames.Damage):
            frames.scan(sample[0][:length])


def test_a_flipped_bit_anywhere_is_found(sample: tuple[bytes, list[int]]):
    """In the last frame it looks like a torn write; anywhere before it is refused."""
    data, ends = sample
    for offset in range(len(data)):
        for bit in range(8):
            bad = bytearray(data + bytes(64))
            bad[offset] ^= 1 << bit
            if offset >= ends[-2]:
                assert state_of(bytes(bad))[0] == STATES[-2]
            else:
                with pytest.raises(frames.Damage) as damage:
                    frames.scan(bytes(bad))
                assert damage.value.offset <= offset


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_stretch_never_gives_a_state_that_was_not(
    sample: tuple[bytes, list[int]], data: st.DataObject
):
    octets = bytearray(sample[0] + bytes(64))
    start = data.draw(st.integers(0, len(octets) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=80))
    octets[start : start + len(noise)] = noise
    try:
        state, _ = state_of(bytes(octets))
    except frames.Damage:
        return
    assert state in STATES


def test_a_write_whose_first_sector_was_lost_is_a_torn_end(sample: tuple[bytes, list[int]]):
    data, ends = sample
    bad = bytearray(data)
    bad[ends[-2] : ends[-2] + 10] = bytes(10)
    assert state_of(bytes(bad)) == (STATES[-2], len(data) - ends[-2])


def test_a_missing_frame_is_refused(sample: tuple[bytes, list[int]]):
    data, ends = sample
    with pytest.raises(frames.Damage):
        frames.scan(data[: ends[1]] + data[ends[2] :])


def test_a_repaired_end_stays_repaired(tmp_path: Path):
    data, ends = written(tmp_path)
    for length in range(ends[-2] + 1, len(data)):
        (tmp_path / "journal").write_bytes(data[:length] + bytes(100))
        store = Journal.open(tmp_path)
        assert store.load() == STATES[-2]
        assert store.recovered is None or store.recovered.offset == ends[-2]
        store.append([("z", 1)])
        store.close()
        store = Journal.open(tmp_path)
        assert store.recovered is None
        assert store.load() == STATES[-2] | {"z": 1}
        store.close()


def test_damage_names_file_offset_and_remedy(tmp_path: Path):
    data, ends = written(tmp_path)
    bad = bytearray(data)
    bad[ends[0] + 20] ^= 1
    (tmp_path / "journal").write_bytes(bad)
    with pytest.raises(StoreError) as failure:
        Journal.open(tmp_path)
    assert str(tmp_path / "journal") in failure.value.message
    assert f"offset {ends[0]}" in failure.value.message
    assert "backup" in failure.value.remedy
    # Refusing has changed nothing and has let go of the lock.
    assert (tmp_path / "journal").read_bytes() == bad
    (tmp_path / "journal").write_bytes(data)
    Journal.open(tmp_path).close()


def test_another_version_or_file_is_refused(tmp_path: Path):
    written(tmp_path)
    (tmp_path / "journal").write_bytes(b"something else, and long enough to be a header of ours")
    with pytest.raises(StoreError, match="no journal of vmmobility"):
        Journal.open(tmp_path)


def test_a_checksummed_frame_of_a_foreign_writer_is_refused(tmp_path: Path):
    header = frames.encode_header(frames.Header(0, 0))
    (tmp_path / "journal").write_bytes(header + frames.encode_frame(1, b'{"no":"list"}'))
    with pytest.raises(StoreError, match="no list of changes"):
        Journal.open(tmp_path)


def test_modes_and_preallocation(tmp_path: Path):
    store = Journal.open(tmp_path / "deep" / "state")
    store.append([("a", 1)])
    file = tmp_path / "deep" / "state" / "journal"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert file.stat().st_size == journal.ALLOCATE
    store.append([("b", "x" * journal.ALLOCATE)])
    assert file.stat().st_size == 2 * journal.ALLOCATE
    store.close()


def test_a_file_system_without_preallocation_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    store = Journal.open(tmp_path)
    store.append([("a", 1)])
    store.append([("b", 2)])
    store.close()
    assert Journal.open(tmp_path).load() == {"a": 1, "b": 2}


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:7], at))
    store = Journal.open(tmp_path)
    for batch in BATCHES:
        store.append(batch)
    store.close()
    assert Journal.open(tmp_path).load() == STATES[-1]


def test_every_append_is_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Journal.open(tmp_path)
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    store.append([(str(number), number) for number in range(100)])
    store.append([])
    assert len(syncs) == 1
    store.close()


def test_opening_writes_the_last_frame_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a failed sync left in the page cache alone must become dirty again to be written."""
    data, ends = written(tmp_path)
    real = os.pwrite
    writes: list[int] = []

    def pwrite(file: int, octets: bytes, at: int) -> int:
        writes.append(at)
        return real(file, octets, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    Journal.open(tmp_path).close()
    assert writes == [ends[-2]]
    assert (tmp_path / "journal").read_bytes().rstrip(b"\0") == data


def test_the_lock_keeps_another_process_out(tmp_path: Path):
    store = Journal.open(tmp_path)
    program = (
        "import sys; from pathlib import Path; from vmmobility.store.journal import Journal;"
        "from vmmobility.errors import StoreError\n"
        "try: Journal.open(Path(sys.argv[1]))\n"
        "except StoreError as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    held = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "another process holds this journal" in held.stdout
    assert str(tmp_path) in held.stdout
    store.close()
    free = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert free.stdout == ""


def test_a_directory_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as failure:
        Journal.open(tmp_path / "file" / "state")
    assert failure.value.remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces: mounts a tmpfs")
def test_a_really_full_disk(tmp_path: Path):
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mount.returncode != 0:
        pytest.skip("needs network namespaces: this container forbids mounting")
    try:
        store = Journal.open(tmp_path / "state")
        good = -1

        def fill() -> None:
            nonlocal good
            for number in range(100):
                store.append([("key", [number, "x" * 100_000])])
                good = number

        with pytest.raises(StoreError, match="No space left") as failure:
            fill()
        assert "make room" in failure.value.remedy
        with pytest.raises(StoreError, match="refuses"):
            store.append([("key", "small")])
        store.close()
        store = Journal.open(tmp_path / "state")
        assert store.load()["key"][0] == good
        store.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_long_torn_end_is_searched_in_bearable_time(sample: tuple[bytes, list[int]]):
    began = time.monotonic()
    scan = frames.scan(sample[0] + b"\x00\x00\xff\xff" * (1 << 18))
    assert scan.dropped > 1 << 19
    assert time.monotonic() - began < 20


def test_a_copy_of_the_files_is_a_backup(tmp_path: Path):
    written(tmp_path / "state")
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    assert Journal.open(tmp_path / "backup").load() == STATES[-1]
