"""Does BIRD take a configuration?  Asked of `bird -p`, which parses it and ends.

Needs BIRD installed, not running.  Not here: loading it into a router.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from vmmobility.errors import ConfigError, EnvironmentProblem

BIRD = "bird"
_LIMIT_S = 60.0
_WORDS = re.compile(r"bird\.conf:(\d+):\d+ (.*)")


def missing_tools() -> str:
    """Why nothing can be checked here; "" if it can."""
    return "no bird: BIRD is not installed" if shutil.which(BIRD) is None else ""


def check(text: str, name: str = "bird.conf") -> None:
    """Raises ConfigError with BIRD's words, or EnvironmentProblem where BIRD is not installed."""
    if missing := missing_tools():
        raise EnvironmentProblem(missing, "apt install bird2")
    with tempfile.TemporaryDirectory(prefix="vmmob-bird-") as folder:
        Path(folder, "bird.conf").write_text(text)
        try:
            done = subprocess.run([BIRD, "-p", "-c", "bird.conf"], cwd=folder, text=True,
                                  capture_output=True, check=False, timeout=_LIMIT_S)  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentProblem(f"{BIRD}: {error}", "try it by hand") from error
    if done.returncode != 0:
        raise _refusal(text, name, done.stdout + done.stderr)


def _refusal(text: str, name: str, said: str) -> ConfigError:
    words = _WORDS.search(said)
    if words is None:
        return ConfigError(f"{name}: BIRD refuses it: {said.strip()[-500:]}", "correct it")
    number = int(words.group(1))
    line = text.splitlines()[number - 1].strip()
    return ConfigError(f"{name}: line {number}, `{line}`: BIRD says {words.group(2)}",
                       "correct that line")  # fmt: skip
