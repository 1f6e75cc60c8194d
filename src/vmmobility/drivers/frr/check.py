"""Does FRR take a configuration?  Asked of FRR's own reload tool, which changes nothing.

Needs FRR installed, not running.  Not here: loading it into a router.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from vmmobility.errors import ConfigError, EnvironmentProblem

RELOAD = Path("/usr/lib/frr/frr-reload.py")
VTYSH = "vtysh"
_LIMIT_S = 60.0
_WORDS = re.compile(r"line (\d+): (%.*?)(?:\\n|\n|$)")


def missing_tools() -> str:
    """Why nothing can be checked here; "" if it can."""
    if shutil.which(VTYSH) is None:
        return "no vtysh: FRR is not installed"
    if not RELOAD.is_file():
        return f"no {RELOAD}: FRR's Python tools are not installed"
    return ""


def check(text: str, name: str = "frr.conf") -> None:
    """Raises ConfigError with FRR's words, or EnvironmentProblem where FRR is not installed."""
    if missing := missing_tools():
        raise EnvironmentProblem(missing, "apt install frr frr-pythontools")
    with tempfile.TemporaryDirectory(prefix="vmmob-frr-") as folder:
        config, running = Path(folder, "frr.conf"), Path(folder, "running.conf")
        config.write_text(text)
        running.write_text("")  # compared with an empty router, so that no daemon is asked
        command = [str(RELOAD), "--test", "--stdout", "--confdir", folder, "--rundir", folder,
                   "--input", str(running), str(config)]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False,
                                  timeout=_LIMIT_S)  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentProblem(f"{RELOAD}: {error}", "try it by hand") from error
    said = done.stdout + done.stderr
    if done.returncode != 0 or _WORDS.search(said):
        raise _refusal(text, name, said)


def _refusal(text: str, name: str, said: str) -> ConfigError:
    words = _WORDS.search(said)
    if words is None:
        return ConfigError(f"{name}: FRR refuses it: {said.strip()[-500:]}", "correct it")
    number = int(words.group(1))
    line = text.splitlines()[number - 1].strip()
    what = " ".join(words.group(2).split())
    return ConfigError(f"{name}: line {number}, `{line}`: FRR says {what}", "correct that line")
