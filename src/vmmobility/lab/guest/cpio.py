"""Writes cpio archives of the kind a kernel unpacks as its initramfs ("newc").

Not a reader, and not a general archiver: no links, no owners but root, no times.
Rests on nothing.  Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat

_MAGIC = b"070701"
_ALIGNMENT = 4


class Archive:
    """Collects entries; finish() gives the archive's bytes.  The same calls give the same bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add_folder(self, name: str) -> None:
        """A folder.  Folders come before what they hold."""
        self._add(name, stat.S_IFDIR | 0o755)

    def add_file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file with permission bits `mode`."""
        self._add(name, stat.S_IFREG | mode, data)

    def add_device(self, name: str, major: int, minor: int) -> None:
        """A character device."""
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        """The whole archive, its trailer included."""
        self._inode = -1
        self._add("TRAILER!!!", 0)
        return b"".join(self._parts)

    def _add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, links, mtime, size, device of the file (2), device it is (2),
        # length of the name, checksum: eight hexadecimal digits each.
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = _MAGIC + b"".join(b"%08X" % field for field in fields)
        self._parts += [_padded(header + encoded), _padded(data)]


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
