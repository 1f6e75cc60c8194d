"""Waiting in asynchronous tests: for a condition, with a deadline.

Not here: the same for synchronous ones (namespaces.wait_for).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

LIMIT_S = 40.0  # a whole guest boots on a busy machine
POLL_S = 0.01

T = TypeVar("T")


async def until(ask: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> None:
    """Ask until it holds; fails with what was last seen."""
    end = time.monotonic() + LIMIT_S
    while not holds(seen := await ask()):
        assert time.monotonic() < end, f"last seen: {seen!r}"
        await asyncio.sleep(POLL_S)


async def until_true(condition: Callable[[], object]) -> None:
    """Look until it is true; fails with what was last seen."""

    async def look() -> object:
        return condition()

    await until(look, bool)
