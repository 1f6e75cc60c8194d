"""The journal: a daemon's durable state in one append-only file (docs/design/durability.md).

One batch is one frame, one write and one fdatasync.  The folded state is kept as JSON text, a key
to its value; when the file has outgrown it, a snapshot takes the file's place.

Not here: the bytes (frames.py), what the records mean (the engines).
Rests on flock, posix_fallocate, fdatasync and rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vmmobility.errors import StoreError
from vmmobility.store import frames
from vmmobility.store.frames import EncodedChange
from vmmobility.store.interface import Change, Recovery

JOURNAL = "journal"
NEXT = "journal.new"
LOCK = "lock"
ALLOCATE = 1 << 20  # octets preallocated at a time
COMPACT_ABOVE = 4 << 20  # octets of frames below which a journal is left to grow
SNAPSHOT_FRAME = 1 << 20  # octets of payload after which a snapshot begins another frame
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHORT = (errno.EMFILE, errno.ENFILE)  # of descriptors, which others may have taken for a while
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Journal:
    """A durable map of keys to JSON values (store.interface.Store).  Made by Journal.open()."""

    def __init__(self, directory: Path, lock: int) -> None:
        """Use open()."""
        self._path = directory / JOURNAL
        self._lock = lock
        self._file = -1
        self._live: dict[str, str] = {}
        self._live_size = 0  # octets of keys and values, about what a snapshot takes
        self._sequence = 0
        self._end = 0  # where the next frame goes
        self._allocated = 0  # the file's size
        self._compact_above = COMPACT_ABOVE
        self._refusal = ""  # why appends are refused
        self._recovered: Recovery | None = None

    @classmethod
    def open(cls, directory: Path) -> Journal:
        """Open or make the journal in this directory, for this process alone; recover its end.

        Raises StoreError if another process holds it, if it is damaged, or on an I/O error.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _io_error(directory, "cannot be opened", error) from error
        journal = cls(directory, lock)
        try:
            journal._take_lock(directory / LOCK)
            journal._start()
        except OSError as error:
            journal.close()
            raise _io_error(journal._path, "cannot be opened", error) from error
        except BaseException:
            journal.close()
            raise
        return journal

    @property
    def recovered(self) -> Recovery | None:
        return self._recovered

    def load(self) -> dict[str, Any]:
        """The live state: a fresh copy, keys in the order in which they first came."""
        return {key: json.loads(value) for key, value in self._live.items()}

    def append(self, changes: Sequence[Change]) -> None:
        """Write one batch, all of it or nothing; it is durable when this returns.

        Raises StoreError on a full disk or an I/O error; then every further append is refused,
        since a sync that failed once may report success without having written (Linux drops the
        dirty pages).  Raises TypeError or ValueError, writing nothing, if a value is no JSON.
        """
        if self._refusal:
            raise StoreError(
                f"{self._path}: refuses to write: {self._refusal}",
                "end the daemon, mend the disk (space, errors in the kernel log), start it again",
            )
        encoded = frames.encode_changes(changes)
        if not encoded:
            return
        frame = frames.encode_frame(self._sequence + 1, frames.payload_of(encoded))
        try:
            self._write(frame)
            self._fold(encoded)
            self._compact_if_grown()
        except OSError as error:
            self._refusal = f"an earlier write failed ({error.strerror})"
            raise _io_error(self._path, "cannot be written", error) from error
        except BaseException:
            self._refusal = "an earlier write was interrupted"
            raise

    def close(self) -> None:
        """Let go of file and lock.  Idempotent."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1
        self._refusal = self._refusal or "it is closed"

    # --- opening ---

    def _take_lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{path}: another process holds this journal",
                "end the daemon that runs with this state_dir, or give this one its own",
            ) from None

    def _start(self) -> None:
        # What a crash left of a snapshot that never got its name.
        (self._path.parent / NEXT).unlink(missing_ok=True)
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            with _opened(self._path.parent) as folder:
                self._adopt(*self._write_snapshot(), folder)
            _sync_directory(self._path.parent.parent)  # the state directory itself may be new
            return
        data = self._path.read_bytes()
        try:
            scan = frames.scan(data)
            for frame in scan.frames:
                self._fold(frames.changes_of(frame))
        except frames.Damage as damage:
            raise StoreError(
                f"{self._path}: damaged at offset {damage.offset}: {damage.what}",
                "put back a backup, or move the file away to start empty - after reading in the "
                "operator's guide what that costs (VMs away from home are cut off)",
            ) from damage
        self._sequence = scan.frames[-1].sequence if scan.frames else scan.header.sequence
        self._end, self._allocated = scan.end, len(data)
        if scan.dropped:
            self._recovered = Recovery(str(self._path), scan.end, scan.dropped)
            # Cut, so that what is left of a torn frame never stands behind a shorter new one.
            os.ftruncate(self._file, scan.end)
            self._allocated = scan.end
        if scan.frames:
            # A process whose last sync failed has left that frame in the page cache alone, where
            # a new sync would find nothing to write.  Earlier frames were synced before it.
            last = scan.frames[-1]
            _write_all(self._file, data[last.offset : last.end], last.offset)
        os.fsync(self._file)
        _sync_directory(self._path.parent)

    # --- appending ---

    def _write(self, frame: bytes) -> None:
        end = self._end + len(frame)
        if end > self._allocated:
            self._allocated = max(end, _allocate(self._file, self._allocated, end))
        _write_all(self._file, frame, self._end)
        os.fdatasync(self._file)
        self._end = end
        self._sequence += 1

    def _fold(self, changes: Sequence[EncodedChange]) -> None:
        for key, value in changes:
            old = self._live.pop(key, None) if value is None else self._live.get(key)
            if old is not None:
                self._live_size -= len(key) + len(old)
            if value is not None:
                self._live[key] = value
                self._live_size += len(key) + len(value)

    # --- compaction ---

    def _compact_if_grown(self) -> None:
        if self._end <= self._compact_above or self._end <= 2 * self._live_size:
            return
        with contextlib.ExitStack() as stack:
            try:
                # Opened before, so that the name is never changed without being synced.
                folder = stack.enter_context(_opened(self._path.parent))
                snapshot = self._write_snapshot()
            except OSError as error:
                (self._path.parent / NEXT).unlink(missing_ok=True)
                if error.errno not in (*_FULL, *_SHORT):
                    raise
                # The batch is durable in the file that has the name: on a full disk, or without
                # a free descriptor, this can wait.
                self._compact_above = 2 * self._end
            else:
                self._adopt(*snapshot, folder)
                self._compact_above = COMPACT_ABOVE

    def _write_snapshot(self) -> tuple[int, int, int]:
        """The live state as a synced file named NEXT: (descriptor, last sequence, end)."""
        path = self._path.parent / NEXT
        new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            sequence, end = self._sequence, frames.HEADER_SIZE
            for payload in self._snapshot_payloads():
                sequence += 1
                frame = frames.encode_frame(sequence, payload)
                _write_all(new, frame, end)
                end += len(frame)
            header = frames.Header(self._sequence, end - frames.HEADER_SIZE)
            _write_all(new, frames.encode_header(header), 0)
            _allocate(new, end, end + 1)
            os.fsync(new)
        except BaseException:
            os.close(new)
            raise
        return new, sequence, end

    def _adopt(self, new: int, sequence: int, end: int, folder: int) -> None:
        """Give the snapshot the journal's name: whenever a crash comes, the name leads to the old
        file or to the new one, each complete.  Only then is the new one used.
        """
        if self._file >= 0:
            os.close(self._file)
        self._file, self._sequence, self._end = new, sequence, end
        self._allocated = os.fstat(new).st_size
        os.rename(self._path.parent / NEXT, self._path)
        os.fsync(folder)

    def _snapshot_payloads(self) -> Iterator[bytes]:
        batch: list[EncodedChange] = []
        size = 0
        for key, value in self._live.items():
            # A lone value near a frame's limit fits: it came in a frame of its own.
            if batch and size + len(key) + len(value) > SNAPSHOT_FRAME:
                yield frames.payload_of(batch)
                batch, size = [], 0
            batch.append((key, value))
            size += len(key) + len(value)
        if batch:
            yield frames.payload_of(batch)


def _allocate(file: int, size: int, need: int) -> int:
    """Reserve space from `size` up to a whole step above `need`; the file's new size in octets.

    So that a sync writes data alone, not a new file size with each frame.
    """
    target = -(-need // ALLOCATE) * ALLOCATE
    try:
        os.posix_fallocate(file, size, target - size)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise
        return size
    return target


def _write_all(file: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


def _sync_directory(path: Path) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _io_error(path: Path, what: str, error: OSError) -> StoreError:
    if error.errno in _FULL:
        remedy = "make room on this file system, then start the daemon again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "give the daemon's user the right to write there, or change state_dir"
    else:
        remedy = "check the disk and the kernel log, then start the daemon again"
    return StoreError(f"{path}: {what}: {error.strerror or error}", remedy)
