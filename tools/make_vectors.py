"""Write docs/vectors/*.json from the values that vector_*.py declare; `--check` only compares.

The tests hold the stored bytes against encoder and decoder, both ways, and never make them anew: a
change of the wire format shows as a difference in docs/vectors, in the review of a commit.

    python tools/make_vectors.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tools.vector_drops import invalid, replay  # noqa: E402
from tools.vector_guests import guests  # noqa: E402
from tools.vector_messages import (  # noqa: E402
    Json,
    every_option,
    hot_move,
    parts,
    registrations,
)
from tools.vector_napt import boxes, napt  # noqa: E402
from tools.vector_protection import protection  # noqa: E402
from tools.vector_routes import routes  # noqa: E402
from tools.vector_trust import challenges, checks, heartbeats  # noqa: E402

FOLDER = ROOT / "docs" / "vectors"

FILES: dict[str, Callable[[], Json]] = {
    "options.json": every_option,
    "registrations.json": registrations,
    "hot-move.json": hot_move,
    "parts.json": parts,
    "challenges.json": challenges,
    "checks.json": checks,
    "heartbeats.json": heartbeats,
    "guests.json": guests,
    "protection.json": protection,
    "routes.json": routes,
    "boxes.json": boxes,
    "napt.json": napt,
    "invalid.json": invalid,
    "replay.json": replay,
}


def rendered(make: Callable[[], Json]) -> str:
    return json.dumps(make(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if they differ")
    check = parser.parse_args().check
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = []
    for name, make in FILES.items():
        path, text = FOLDER / name, rendered(make)
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, "utf-8")
    for name in stale:
        sys.stderr.write(f"docs/vectors/{name}: {'differs' if check else 'written'}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
