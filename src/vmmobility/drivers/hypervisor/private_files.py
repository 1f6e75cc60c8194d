"""Folders and files that only the daemon's own user may read, whatever the umask is.

They hold guests' memory, disks, monitors and secrets.  What exists already is left as it is.
Rests on nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FOLDER, FILE = 0o700, 0o600
UMASK = 0o077  # of programs that make files for us


def make_folder(path: Path) -> None:
    """With all that are missing above it.  Raises OSError."""
    if not path.parent.exists():
        make_folder(path.parent)
    with suppress(FileExistsError):
        path.mkdir(mode=FOLDER)


def opener(path: str, flags: int) -> int:
    """For open()."""
    return os.open(path, flags | os.O_CLOEXEC, FILE)


def write(path: Path, text: str) -> None:
    """As Path.write_text().  Raises OSError."""
    with open(path, "w", encoding="utf-8", opener=opener) as file:
        file.write(text)
