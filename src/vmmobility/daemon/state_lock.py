"""One process a state folder, for a daemon without a journal (a journal has a lock of its own).

Rests on flock: the kernel lets go of it when the process ends, however that comes.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmmobility.errors import StoreError

LOCK = "lock"


@contextmanager
def alone(state_dir: Path) -> Iterator[None]:
    """While the context lasts nobody else works on this folder, which is made if it is missing.

    Raises StoreError.
    """
    path = state_dir / LOCK
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be opened: {error.strerror}", "correct server.state_dir"
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{path}: another process holds this folder",
                "end the agent that runs with this state_dir, or give this one its own",
            ) from None
        yield
    finally:
        os.close(lock)
