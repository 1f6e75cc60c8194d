"""People's commands that an engine ends later, by CommandDone: each asker waits for its own.

Not here: what a command does (the engines).  Rests on asyncio and the pump.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from vmmobility.daemon.pump import Pump
from vmmobility.engine.outputs import CommandDone
from vmmobility.errors import Conflict, Unavailable


class Commands:
    """The commands under way of one engine."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[CommandDone]] = {}

    async def run(
        self, pump: Pump, feed: Callable[[int, float], None], limit_s: float | None = None
    ) -> dict[str, Any]:
        """The command's result.  feed(number, now): the engine's input that begins it.

        Raises Conflict if the engine refuses, Unavailable if that takes longer than limit_s; the
        engine then goes on, and nobody hears of its end.
        """
        number = next(self._numbers)
        ended: asyncio.Future[CommandDone] = asyncio.get_running_loop().create_future()
        self._waiting[number] = ended
        try:
            pump.input(lambda now: feed(number, now))
            async with asyncio.timeout(limit_s):
                done = await ended
        except TimeoutError:
            raise Unavailable(
                f"it has not ended within {limit_s:g} s", "ask again, with a longer --timeout"
            ) from None
        finally:
            del self._waiting[number]
        if done.error:
            raise Conflict(done.error, done.remedy)
        return done.result

    def done(self, output: CommandDone) -> None:
        """An engine's output; nobody may wait for it any more."""
        ended = self._waiting.get(output.command)
        if ended is not None and not ended.done():
            ended.set_result(output)
