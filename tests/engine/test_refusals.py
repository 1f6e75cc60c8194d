"""What an engine refuses to people is an error of the project, with a remedy."""

from __future__ import annotations

import pytest

from tests.engine.conversation import vm_key
from tests.engine.network import World
from vmmobility.engine.manager_move import CommandRefused, MoveRefused, ReleaseRefused
from vmmobility.errors import VmMobilityError


@pytest.mark.parametrize("error", [CommandRefused, MoveRefused, ReleaseRefused])
def test_a_refusal_is_under_the_error_root(error: type[CommandRefused]) -> None:
    assert issubclass(error, VmMobilityError)
    refused = error("conflict", "a message", "a remedy")
    assert (refused.kind, refused.message, refused.remedy) == ("conflict", "a message", "a remedy")


def test_a_refused_move_names_a_remedy() -> None:
    with pytest.raises(VmMobilityError) as refused:
        World().move(vm_key("vm9"), "b")
    assert refused.value.remedy
