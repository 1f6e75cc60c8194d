"""What diskd.c has written to a disk image, and what it has told of as acknowledged.

Not here: the image's format (whoever reads gives raw octets).
"""

from __future__ import annotations

import re
import struct

SECTOR = 4096
_HEAD = struct.Struct("<8sQQ")
_MAGIC = b"vmmobDSK"
_TOLD = re.compile(rb"diskd: (\d+) acknowledged")


def records_in(image: bytes, records: int) -> set[int]:
    """The numbers of the sound records in the first `records` sectors of a raw image."""
    found = set()
    for place in range(records):
        sector = image[place * SECTOR : (place + 1) * SECTOR]
        if len(sector) < SECTOR:
            break
        magic, number, check = _HEAD.unpack_from(sector)
        filled = sector[_HEAD.size :] == bytes([number & 0xFF]) * (SECTOR - _HEAD.size)
        if magic == _MAGIC and check == _sum(sector[:16]) and filled and number % records == place:
            found.add(number)
    return found


def acknowledged(console: bytes) -> int:
    """The last record that the guest was told is on its disk; 0 before the first.

    The greatest: one that was booted anew begins again at 1, with the same records.
    """
    told = _TOLD.findall(console)
    return max(map(int, told), default=0)


def first_acknowledged(console: bytes) -> int:
    """The first record of which this console tells; 0 if of none."""
    told = _TOLD.search(console)
    return int(told[1]) if told else 0


def lost(image: bytes, records: int, last: int) -> list[int]:
    """Which of the records up to `last` should be on the disk and are not."""
    present = records_in(image, records)
    newest = {number % records: number for number in present}
    return [
        number
        for number in range(max(1, last - records + 1), last + 1)
        if newest.get(number % records, 0) < number
    ]


def _sum(octets: bytes) -> int:
    value = 1469598103934665603
    for octet in octets:
        value = (value ^ octet) * 1099511628211 % (1 << 64)
    return value
