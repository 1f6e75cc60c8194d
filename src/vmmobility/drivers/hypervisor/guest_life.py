"""What QEMU's run states say of a guest's life.

life_of("postmigrate") -> GuestLife.DEPARTED
Not here: asking QEMU (guest.py, external_guest.py).  Rests on wire.registry.
"""

from __future__ import annotations

from vmmobility.wire.registry import GuestLife

# QEMU's RunState -> life.  A guest that sleeps (ACPI S3) wakes by itself, and so counts as running.
# Any other state (paused, prelaunch, inmigrate, shutdown, io-error ...) waits for somebody's word.
_LIVES = {
    "running": GuestLife.RUNNING,
    "suspended": GuestLife.RUNNING,
    "postmigrate": GuestLife.DEPARTED,
}
# Stopped for its migration, the end of which is not known yet: it may run again here.
HANDING_OVER = "finish-migrate"
# The destination has the CPUs already and fetches the rest of the memory: no way back.
_POSTCOPY = "postcopy"


def life_of(status: str, migration: str = "") -> GuestLife:
    """The life of a guest of this run state; migration: the outgoing migration's status, if any."""
    if status == HANDING_OVER and migration.startswith(_POSTCOPY):
        return GuestLife.DEPARTED
    return _LIVES.get(status, GuestLife.HELD)
