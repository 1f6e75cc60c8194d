"""Schedules that break something which is known, and not mended yet: seed -> how.

One that breaks nothing any more is taken off (the test says so); a change of ours adds none.
docs/design/safety.md, "Open", tells what each is.
"""

from __future__ import annotations

OPEN: dict[int, str] = {
    115: "does not settle: a drain's move is given up while its source's VM is stopped by people",
    407: "lost: a stopped VM, released and started elsewhere while its NVE was cut off",
    623: "loop: a manager that lost its records in a routed move, and a second move at once",
    962: "cannot be moved again: a drain of a VM that other hands run",
    1361: "two members at an NVE: members of a group that move at once",
}
