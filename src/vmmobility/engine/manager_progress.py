"""What a move's two ends measure, for people: figures of the switch, octets copied so far.

Never acted on.  Not here: what the ends report besides (manager_moves.py).
"""

from __future__ import annotations

import json
from typing import Any

from vmmobility.engine.manager_move import Move
from vmmobility.engine.nve_progress import PROGRESS_KEYS
from vmmobility.wire.message import Message
from vmmobility.wire.options import Measurements

MOST = 1e15  # no figure of a move is greater
MOST_FIGURES = 24


class ManagerProgress:
    """The figures of moves; a part of ManagerMoves."""

    @staticmethod
    def _measure(move: Move, message: Message) -> None:
        # A record is JSON, which has no NaN and no infinity: neither passes this comparison.
        numbers = {
            key: value
            for key, value in _figures(message).items()
            if isinstance(value, int | float) and -MOST < value < MOST
        }
        move.measured |= dict(list(numbers.items())[:MOST_FIGURES])

    @staticmethod
    def _heed_progress(move: Move, message: Message) -> None:
        """How far the copies are; not durable, the next report comes in a second."""
        told = _figures(message)
        for key in PROGRESS_KEYS:
            value = told.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST:
                move.progress[key] = value


def _figures(message: Message) -> dict[str, Any]:
    """The message's Measurements; {} where there are none, or no JSON object."""
    option = message.find(Measurements)
    if option is None:
        return {}
    try:
        figures = json.loads(option.data)
    except (ValueError, RecursionError):
        return {}
    return figures if isinstance(figures, dict) else {}
