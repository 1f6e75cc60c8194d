"""docs/architecture.md names every module once, in its folder; docs/README.md names every page."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "vmmobility"
DOCS = ROOT / "docs"
ROW = re.compile(r"\| `([a-z/]+/)` \| [^|]+ \| ((?:`[a-z_]+` ?)+)\|")


def test_the_map_has_every_module_once_and_no_other():
    text = (DOCS / "architecture.md").read_text()
    named = Counter(
        folder + name
        for folder, names in ROW.findall(text)
        for name in re.findall(r"[a-z_]+", names)
    )
    paths = [path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.py")]
    inner = {str(path) for path in paths if len(path.parts) > 1 and path.name != "__init__"}
    assert named == Counter(inner)


def test_the_index_has_every_page():
    linked = set(re.findall(r"\]\(([a-z/-]+\.md)\)", (DOCS / "README.md").read_text()))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - {"README.md"}
    assert linked == pages
