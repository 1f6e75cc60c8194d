"""What a scenario's steps are: values only, one class a kind of step.

Not here: reading them from TOML (step_reader.py), carrying them out (steps.py).  The steps'
meaning is in docs/lab.md.  Rests on nothing of the lab.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Move:
    """Ask the manager to move `vm` to the NVE `to`."""

    vm: str
    to: str
    wait: bool = True
    expect: str = "ok"
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Drain:
    """Have the manager empty `nve`, `parallel` moves at once, to these NVEs (none: any)."""

    nve: str
    to: tuple[str, ...] = ()
    parallel: int = 4
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Protect:
    """Keep `vm`'s warm standby at the NVE `to`, and wait until it has so many checkpoints.

    lease_s: None: the manager's own
    """

    vm: str
    to: str
    every_s: float = 5.0
    lease_s: float | None = None
    checkpoints: int = 3
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class LookAtStandby:
    """Read which records the last complete checkpoint of `vm` has on its disk: its primary is
    dead, or paused, and its standby has not taken over yet."""

    vm: str
    timeout_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Let time pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Kill:
    """A signal to processes of all these nodes at once; guests live on.

    process: "daemon", "relay" (the NVEs' helper) or "both"
    """

    nodes: tuple[str, ...]
    signal: signal.Signals
    process: str = "daemon"


@dataclass(frozen=True, slots=True)
class Start:
    """Start daemons (again), all at once; `kill_first` makes it a restart."""

    nodes: tuple[str, ...]
    kill_first: bool = False


@dataclass(frozen=True, slots=True)
class Power:
    """A host goes dark, with its guests and its kernel's state; or comes up and starts its NVE."""

    node: str
    on: bool


@dataclass(frozen=True, slots=True)
class LoseState:
    """A host's state folder is gone, as after a fresh image; its daemon does not run."""

    node: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Drop `per_mille` of a link's frames each way (1000 = cut, 0 = heal), for a while or on.

    control_only: of those of control messages; data passes
    """

    link: str
    per_mille: int
    seconds: float | None = None
    control_only: bool = False


@dataclass(frozen=True, slots=True)
class Carrier:
    """A link goes down or up, and both of its ends know."""

    link: str
    up: bool


@dataclass(frozen=True, slots=True)
class KillFrr:
    """A signal to some of FRR's daemons at a router."""

    node: str
    daemons: tuple[str, ...]
    signal: signal.Signals


@dataclass(frozen=True, slots=True)
class StartFrr:
    """Start what of FRR has ended at a router, as FRR's own watchdog does."""

    node: str


@dataclass(frozen=True, slots=True)
class Exec:
    """Run a command in a node's namespace; `vmmob`: one of ours, told that node's API."""

    node: str
    command: tuple[str, ...]
    expect_status: int | None = 0
    vmmob: bool = False


@dataclass(frozen=True, slots=True)
class Guest:
    """Something done to one VM at one NVE; `error`: it must be refused with this in the refusal.

    do: "start-vm", "stop-vm", "expect", "start-by-hand", "migrate-by-hand", "stop-by-hand"
    """

    do: str
    vm: str
    nve: str
    error: str | None = None
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Remember:
    """From now on count route changes and events anew; bindings must stay as they are now."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Send again, from the node `source`, all control messages captured up to `remember`."""

    source: str


@dataclass(frozen=True, slots=True)
class Assertion:
    """Something that must be so, at once or within a time."""

    what: str
    within_s: float
    vm: str = ""
    node: str = ""
    via: str = ""
    source: str = ""
    command: tuple[str, ...] = ()
    contains: str = ""
    event: str = ""
    maximum: int = 0
    state: str = ""
    target: str = ""
    at_rest: bool = False
    octets: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Repeat:
    """The steps, several times."""

    times: int
    steps: tuple[Step, ...]


Step = (
    Move
    | Drain
    | Protect
    | LookAtStandby
    | Pause
    | Kill
    | Start
    | Power
    | LoseState
    | Fault
    | Carrier
    | KillFrr
    | StartFrr
    | Exec
    | Guest
    | Remember
    | Replay
    | Assertion
    | Repeat
)
