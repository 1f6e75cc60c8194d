"""The cursor fails on reading past the end and on octets left unread."""

import pytest

from vmmobility.errors import DecodeError
from vmmobility.wire.cursor import Cursor


def test_it_reads_in_network_order_to_the_end():
    cursor = Cursor(b"\x01\x02\x03\x04\x05\x06\x07", "test")
    assert cursor.uint(1) == 1
    assert cursor.uint(2) == 0x0203
    assert cursor.take(3) == b"\x04\x05\x06"
    assert cursor.left == 1
    assert cursor.rest() == b"\x07"
    assert cursor.rest() == b""
    cursor.finish()


@pytest.mark.parametrize("octets", [1, 2, 4, 8])
def test_reading_past_the_end_is_truncated(octets):
    cursor = Cursor(bytes(octets - 1), "Epoch")
    with pytest.raises(DecodeError, match="Epoch") as caught:
        cursor.uint(octets)
    assert caught.value.reason == "truncated"
    assert cursor.left == octets - 1  # a failed read takes nothing


def test_octets_left_unread_are_trailing():
    with pytest.raises(DecodeError, match="Endpoint") as caught:
        Cursor(b"x", "Endpoint").finish()
    assert caught.value.reason == "trailing"
