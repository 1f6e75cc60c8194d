"""`vmmob lab …` as people run it, and what its labs leave in a machine.

Not here: what the reports must say.  The fixture `lab` (conftest.py) gives one a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VMMOB = (sys.executable, "-m", "vmmobility", "lab")


@dataclass
class Lab:
    """Runs `vmmob lab …` as people do; its labs live in a folder of their own."""

    folder: Path
    out: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "XDG_RUNTIME_DIR": str(self.folder)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*VMMOB, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True, env=self.environment)  # fmt: skip

    def call(self, *words: str, status: int = 0, within_s: float = 590) -> str:
        done = subprocess.run([*VMMOB, *words], capture_output=True, text=True, check=False,
                              env=self.environment, timeout=within_s)  # fmt: skip
        output = done.stdout + done.stderr
        assert done.returncode == status, output
        return output

    def run(self, scenario: str, *words: str) -> dict[str, Any]:
        """The report of a run that must be ok."""
        files = ("--json", str(self.out / "r.json"), "--html", str(self.out / "r.html"))
        output = self.call("run", scenario, *files, "--raw", str(self.out / "raw"), *words)
        (self.out / "output.txt").write_text(output)
        report: dict[str, Any] = json.loads((self.out / "r.json").read_text())
        assert (report["ok"], report["failures"], report["leftovers"]) == (True, [], []), output
        return report


def await_line(process: subprocess.Popen[str], text: str, within_s: float = 60.0) -> list[str]:
    """Read a lab's output until a line holds the text; the lines read."""
    timer = threading.Timer(within_s, process.kill)
    timer.start()
    lines = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line)
            if text in line:
                return lines
    finally:
        timer.cancel()
    raise AssertionError(f"no {text!r} in:\n{''.join(lines)}")


def remains(lab: Lab) -> list[str]:
    """Namespaces and processes of the labs in this folder."""
    names = [path.name for path in lab.folder.glob("vmmobility-lab/vml*")]
    done = subprocess.run(["ps", "axwwo", "args"], capture_output=True, text=True, check=True)
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    found = [line for line in done.stdout.splitlines() if f"{lab.folder}/" in line]
    return found + [line for line in spaces.splitlines() if line.split("-")[0] in names]
