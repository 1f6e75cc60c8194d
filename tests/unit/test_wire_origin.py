"""What boxes have put into a message is undone note after note, the last first."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from vmmobility.wire.message import Message
from vmmobility.wire.options import InterfaceGroup, Option, Translation
from vmmobility.wire.origin import original, substituted
from vmmobility.wire.registry import Kind, Purpose
from vmmobility.wire.values import Interface

ADDRESSES = st.integers(1, 8).map(lambda n: IPv4Address(f"10.0.0.{n}"))
NOTES = st.lists(st.builds(Translation, st.sampled_from(["x", "y"]), ADDRESSES, ADDRESSES))


def one_by_one(message: Message) -> Message:
    options: tuple[Option, ...] = tuple(
        o for o in message.options if not isinstance(o, Translation)
    )
    for note in reversed([o for o in message.options if isinstance(o, Translation)]):
        options = substituted(options, {note.substitute: note.original})
    return replace(message, options=options)


@given(NOTES, st.lists(ADDRESSES, min_size=1, unique=True))
def test_notes_are_undone_the_last_first(notes: list[Translation], there: list[IPv4Address]):
    interface = Interface(bytes((2, 0, 0, 0, 0, 1)), tuple(IPv4Network(a) for a in there))
    message = Message(Kind.REQUEST, Purpose.ATTACH, 1, (InterfaceGroup(interface), *notes))
    assert original(message) == one_by_one(message)
