"""Write the tables of docs/api.md, and of the operator's guide, from the declared routes; `--check`
only compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.

    python tools/api_tables.py [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from vmmobility.api.declared import Declared, declarations  # noqa: E402
from vmmobility.api.manager_api import ManagerRoutes  # noqa: E402
from vmmobility.api.napt_api import NaptRoutes  # noqa: E402
from vmmobility.api.nve_api import NveRoutes  # noqa: E402
from vmmobility.api.openapi import role_table, route_table, schema_table  # noqa: E402
from vmmobility.api.router_api import RouterRoutes  # noqa: E402

PAGES = (ROOT / "docs" / "api.md", ROOT / "docs" / "operators-guide.md")
APIS: dict[str, type] = {
    "manager": ManagerRoutes, "nve": NveRoutes, "router": RouterRoutes, "napt": NaptRoutes,
}  # fmt: skip


def _table(name: str) -> str:
    if name == "schemas":
        every: list[Declared] = [route for api in APIS.values() for route, _ in declarations(api)]
        return schema_table(every)
    if name == "roles":  # only the manager is asked by tokens
        return role_table(route for route, _ in declarations(ManagerRoutes))
    return route_table(route for route, _ in declarations(APIS[name]))


def filled(page: str) -> str:
    """The page with every table made anew.  Raises KeyError for a name that is none."""
    return re.sub(
        r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)",
        lambda found: found[1] + "\n" + _table(found[2]) + "\n" + found[3],
        page,
        flags=re.DOTALL,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if they differ")
    check = parser.parse_args().check
    differing = [
        page for page in PAGES if filled(page.read_text("utf-8")) != page.read_text("utf-8")
    ]
    if not check:
        for page in differing:
            page.write_text(filled(page.read_text("utf-8")), "utf-8")
        return 0
    for page in differing:
        name = page.relative_to(ROOT)
        sys.stderr.write(f"{name} differs from the code; run tools/api_tables.py\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
