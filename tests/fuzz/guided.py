"""`make fuzz GUIDED=1`: one target under atheris (libFuzzer), which follows the code's coverage.

    python -m tests.fuzz.guided TARGET SECONDS FOLDER

What it learns stays in FOLDER/TARGET; an input that breaks the decoder is left in FOLDER, and the
exit status tells.  Not part of `make test`: atheris exists for few machines and Python versions,
and its runs do not repeat themselves (docs/design/fuzzing.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["vmmobility"]):
    from tests.fuzz.campaign import CORPUS, TARGETS, seeds_of

LONGEST_S = 5  # one input


def main(name: str, seconds: str, folder: str) -> None:
    target, learnt = TARGETS[name], Path(folder) / name
    learnt.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds_of(name)):
        (learnt / f"seed-{number}").write_bytes(seed)

    def check(data: bytes) -> None:
        # Two of three are mended, so that mutations get past lengths and checksums.
        target.check(target.repair(data) if sum(data[-2:]) % 3 else data)

    options = [f"-max_total_time={seconds}", f"-max_len={target.longest}", "-rss_limit_mb=2048",
               f"-timeout={LONGEST_S}", f"-artifact_prefix={folder}/{name}-", "-verbosity=0",
               "-print_final_stats=1", str(learnt), str(CORPUS / name)]  # fmt: skip
    atheris.Setup([name, *options], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
