"""Messages as plain JSON values and back (docs/vectors has every option)."""

import json

import pytest

from vmmobility.wire import dissect
from vmmobility.wire.message import Message
from vmmobility.wire.options import BY_CLASS, Definition, Epoch, Measurements, PhaseOption, VmId
from vmmobility.wire.registry import Kind, Phase, Purpose, Status
from vmmobility.wire.values import VmKey


def test_a_message_reads_as_json():
    message = Message(
        Kind.REPLY, Purpose.SWITCH, 9, (VmId(VmKey(0, "vm-1")), PhaseOption(Phase.SWITCHED)),
        status=Status.WRONG_PHASE,
    )  # fmt: skip
    assert dissect.readable(message) == {
        "kind": "REPLY",
        "purpose": "SWITCH",
        "status": "WRONG_PHASE",
        "flags": 0,
        "sequence": 9,
        "lifetime": 0,
        "options": [
            {"option": "VM-ID", "vni": 0, "vm_id": "vm-1"},
            {"option": "Phase", "phase": "SWITCHED"},
        ],
    }


@pytest.mark.parametrize(
    ("option", "entry"),
    [
        (Definition(b"{}"), {"option": "Definition", "text": "{}"}),
        (Measurements(b"\xff\x00"), {"option": "Measurements", "hex": "ff00"}),
        (Epoch(2**53 - 1), {"option": "Epoch", "epoch": 2**53 - 1}),
        (Epoch(2**53), {"option": "Epoch", "epoch": "9007199254740992"}),
    ],
)
def test_octets_and_great_integers_survive_json(option, entry):
    assert dissect.readable_option(option) == entry
    assert dissect.option_of(json.loads(json.dumps(entry))) == option


def test_every_option_is_readable():
    assert set(dissect._READERS) == set(BY_CLASS)
