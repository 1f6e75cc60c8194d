"""A schedule: a domain, its weather and what befalls it when, as a value that is drawn from a seed.

Everything is explicit, so a failing schedule shrinks by leaving operations out, and its text
replays it:

    seed 17
    nves a b c
    routers ra:a rb:b,c x
    homes vm1=a vm2=b
    settings lifetime=8 drain=2 ... loss=0.2
    > 0.000 start vm1 a
    > 2.310 move vm1 b
    > 2.310 crash-at manager 7 1.500

Not here: what the verbs do (operations.py), how a schedule is drawn (draw.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

# What a World is made of; all in seconds but for the chances loss and repetition.
CALM: dict[str, float] = {
    "lifetime": 12.0, "drain": 3.0, "step": 4.0, "copy": 12.0, "ticket": 40.0,
    "first": 0.25, "most": 2.0, "check": 6.0, "ask": 2.0,
    "loss": 0.0, "repetition": 0.0, "delay": 0.001, "persist": 0.001,
    "order": 0.002, "copying": 0.5, "moment": 0.02, "stop": 0.01, "load": 0.01,
}  # fmt: skip
# The same of one with routers: how long a move waits for its gate, the most that a word takes in
# the fabric, and whether a move goes on when the gate's time is over.
CALM_FABRIC: dict[str, float] = {"gate": 2.0, "fabric": 0.1, "proceed": 0.0}


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that befalls the domain at a moment."""

    at: float
    verb: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((f"> {self.at:.3f}", self.verb, *self.words))


@dataclass(frozen=True, slots=True)
class Schedule:
    """seed: of the weather's dice; homes: VM -> the NVE to which the fabric leads for it; routers:
    each as "ra:a,b", with the NVEs behind it, a border router without any; most have none; groups:
    load-shared ones, each as "vm1,vm2": all have the addresses of its first VM."""

    seed: int
    nves: tuple[str, ...]
    homes: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, float], ...]
    operations: tuple[Operation, ...]
    routers: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def setting(self, name: str) -> float:
        return {**CALM, **CALM_FABRIC, **dict(self.settings)}[name]

    def with_settings(self, **changed: float) -> Schedule:
        return replace(self, settings=tuple({**dict(self.settings), **changed}.items()))

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}",
            f"nves {' '.join(self.nves)}",
            *([f"routers {' '.join(self.routers)}"] if self.routers else []),
            *([f"groups {' '.join(self.groups)}"] if self.groups else []),
            f"homes {' '.join(f'{vm}={home}' for vm, home in self.homes)}",
            f"settings {' '.join(f'{name}={value:g}' for name, value in self.settings)}",
            *map(str, self.operations),
        ]
        return "\n".join(lines) + "\n"


def parse(text: str) -> Schedule:
    """The schedule that `str` wrote; lines that begin with '#' are for people."""
    head: dict[str, list[str]] = {}
    operations = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == ">":
            operations.append(Operation(float(words[1]), words[2], tuple(words[3:])))
        else:
            head[words[0]] = words[1:]
    return Schedule(
        int(head["seed"][0]),
        tuple(head["nves"]),
        tuple((vm, home) for vm, _, home in (w.partition("=") for w in head["homes"])),
        tuple((n, float(v)) for n, _, v in (w.partition("=") for w in head["settings"])),
        tuple(operations),
        tuple(head.get("routers", ())),
        tuple(head.get("groups", ())),
    )


def kept() -> dict[str, Schedule]:
    """Schedules that once broke something."""
    folder = Path(__file__).with_name("kept")
    return {path.stem: parse(path.read_text()) for path in sorted(folder.glob("*.txt"))}
