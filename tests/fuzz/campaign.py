"""`make fuzz`: the kept corpus, then mutated inputs, for every decoder or one.

    python -m tests.fuzz.campaign [TARGET …] [--inputs N | --seconds S] [--seed K] [--keep]

A failure is an exception that the target does not name, or an input that takes longer than SLOW_S.
It is made smaller, written to the folder of failures, and printed; the exit status is 1.  --keep
adds to the corpus one small input for each outcome that has none yet.

Not here: targets (targets_*.py), mutations (mutation.py).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.fuzz import (
    targets_api,
    targets_engine,
    targets_files,
    targets_kernel,
    targets_napt,
    targets_store,
    targets_wire,
)
from tests.fuzz.mutation import Mutator
from tests.fuzz.target import Target

MODULES = (
    targets_wire, targets_engine, targets_napt, targets_store, targets_kernel, targets_files,
    targets_api,
)  # fmt: skip
TARGETS = {t.name: t for module in MODULES for t in module.TARGETS}
CORPUS = Path(__file__).with_name("corpus")
FAILURES = Path(".build/fuzz")
SLOW_S = 1.0  # for one input of a few thousand octets, also on a machine that is busy
ENDLESS_S = 3.0  # then it is not waited for
MEMORY = 2 << 30  # octets of address space of `make fuzz`
BROKE = "broke-"  # what a file of the corpus is called that once found a defect
KEPT = 24  # files of a target in the corpus, beside those that once broke something
REPAIRED = 0.7  # share of the mutated inputs whose lengths and checksums are made right again


@dataclass
class Found:
    """What a target did.  outcomes: name -> the smallest input that led to it."""

    inputs: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    smallest: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, bytes] = field(default_factory=dict)


def kept(target: Target) -> list[tuple[str, bytes]]:
    """The corpus: name and content of each file."""
    files = sorted((CORPUS / target.name).glob("*")) if (CORPUS / target.name).is_dir() else []
    return [(path.name, path.read_bytes()) for path in files]


@cache
def seeds_of(name: str) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(TARGETS[name].seeds()))


class TooLong(BaseException):
    """Nobody's `except Exception` may swallow it."""


@contextlib.contextmanager
def limit_of_time() -> Iterator[None]:
    """TooLong inside the block once it has used ENDLESS_S of the processor."""

    def ring(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, ENDLESS_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def failure_of(target: Target, data: bytes) -> tuple[str, str]:
    """(outcome, "") of one input, or ("", what is wrong)."""
    start = time.process_time()
    try:
        with limit_of_time():
            outcome = target.check(data)
    except TooLong:
        return "", f"endless: more than {ENDLESS_S:g} s"
    except Exception as error:  # whatever it is, the target does not name it
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "", f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
    if time.process_time() - start > SLOW_S:
        return "", f"slow: more than {SLOW_S:g} s"
    return outcome, ""


def run(target: Target, inputs: Iterator[bytes], enough: Callable[[int], bool]) -> Found:
    """Check the corpus, the seeds, then inputs until it is enough; one failure a place."""
    found = Found()
    for data in [content for _, content in kept(target)] + [*seeds_of(target.name)]:
        _note(target, found, data)
    while not enough(found.inputs):
        _note(target, found, next(inputs))
    return found


def _note(target: Target, found: Found, data: bytes) -> None:
    outcome, wrong = failure_of(target, data)
    found.inputs += 1
    if wrong:
        found.failures.setdefault(wrong.split(": ")[0], data)
        return
    found.counts[outcome] += 1
    best = found.smallest.get(outcome)
    if best is None or len(data) < len(best):
        found.smallest[outcome] = data


def mutated(target: Target, seed: int) -> Iterator[bytes]:
    """Inputs without end, the same for the same seed."""
    chance = random.Random(f"{target.name}/{seed}")
    pool = [*dict.fromkeys([*(content for _, content in kept(target)), *seeds_of(target.name)])]
    mutator = Mutator(chance, pool, target.words, target.longest)
    while True:
        data = mutator.one()
        yield target.repair(data) if chance.random() < REPAIRED else data


def smaller(target: Target, data: bytes, same: Callable[[bytes], bool], tries: int = 600) -> bytes:
    """The input with pieces cut out as long as the same comes of it."""
    size = len(data) // 2
    while size and tries:
        start = 0
        while start < len(data) and tries:
            tries -= 1
            less = data[:start] + data[start + size :]
            if same(less):
                data = less
            elif same(target.repair(less)):
                data = target.repair(less)
            else:
                start += size
        size //= 2
    return data


def write(folder: Path, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:12]
    path.write_bytes(data)
    return path


def keep(target: Target, found: Found) -> int:
    """A file for each outcome that no file of the corpus has, rare ones first; how many."""
    have = {failure_of(target, content)[0] for _, content in kept(target)}
    rare = sorted(found.smallest, key=lambda outcome: found.counts[outcome])
    room = max(0, KEPT - len([n for n, _ in kept(target) if not n.startswith(BROKE)]))
    new = {o: found.smallest[o] for o in [o for o in rare if o not in have][:room]}
    for outcome, data in new.items():
        small = smaller(target, data, lambda d, o=outcome: failure_of(target, d)[0] == o)  # type: ignore[misc]
        write(CORPUS / target.name, small)
    return len(new)


def tell(target: Target, found: Found) -> None:
    print(
        f"{target.name:<16} {found.inputs:>8} inputs {len(found.counts):>4} outcomes "
        f"{len(found.failures):>3} failures",
        flush=True,
    )
    for wrong, data in found.failures.items():
        small = smaller(target, data, lambda d, w=wrong: failure_of(target, d)[1].startswith(w))  # type: ignore[misc]
        path = write(FAILURES / target.name, small)
        print(f"  {failure_of(target, small)[1]}\n  input: {path}: {small[:120]!r}")


def until(inputs: float, seconds: float) -> Callable[[int], bool]:
    end = time.monotonic() + seconds
    return lambda done: done >= inputs or time.monotonic() > end


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []])
    parser.add_argument("--inputs", type=int, help="for each target; a slow one gets a share")
    parser.add_argument("--seconds", type=float, help="for all of them together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="add new outcomes to the corpus")
    parser.add_argument("--list", action="store_true", help="name the targets, and end")
    given = parser.parse_args(arguments)
    if given.list:
        print(*TARGETS)
        return 0
    chosen = [TARGETS[name] for name in given.targets or TARGETS]
    seconds = given.seconds / len(chosen) if given.seconds else float("inf")
    inputs = given.inputs or (float("inf") if given.seconds else 20_000)
    failures = total = new = 0
    start = time.monotonic()
    for target in chosen:
        enough = until(inputs * target.weight, seconds)
        found = run(target, mutated(target, given.seed), enough)
        tell(target, found)
        failures += len(found.failures)
        total += found.inputs
        new += keep(target, found) if given.keep else 0
    kept_now = f", {new} new in the corpus" if given.keep else ""
    print(
        f"fuzz: {len(chosen)} targets, {total} inputs, {failures} failures{kept_now}, "
        f"{time.monotonic() - start:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    # Here, for the limit is the whole process's: what takes more is a MemoryError, thus a failure.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    sys.exit(main())
