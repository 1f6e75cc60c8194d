"""The gate of tests/conftest.py: in CI an unexpected skip, or no test at all, is a failure."""

import re
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
PASSES = "def test_passes(): pass\n"
SKIPS = "import pytest\ndef test_skips(): pytest.skip('no such device: zebra')\n"


@pytest.mark.parametrize(
    ("ci", "tests", "allowed", "code"),
    [
        pytest.param("true", PASSES, "", 0, id="nothing skipped"),
        pytest.param("true", PASSES + SKIPS, "# none\n", 1, id="unexpected skip"),
        pytest.param("true", PASSES + SKIPS, "no such device\n", 0, id="expected skip"),
        pytest.param("true", SKIPS, "no such device\n", 5, id="nothing but skips"),
        pytest.param("true", "", "", 5, id="no tests"),
        pytest.param("false", PASSES + SKIPS, "", 0, id="not in CI"),
    ],
)
def test_gate(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    ci: str,
    tests: str,
    allowed: str,
    code: int,
) -> None:
    monkeypatch.setenv("CI", ci)
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    (pytester.path / "expected_skips.txt").write_text(allowed, encoding="utf-8")
    pytester.makepyfile(tests)

    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")

    assert result.ret == code
    if code == 1:
        result.stdout.fnmatch_lines(["*unexpected skips*", "*no such device: zebra"])
    assert re.search(r"=== .* in [0-9.]+s", result.outlines[-1])  # the closing line stands last


def test_the_gate_holds_where_processes_share_the_work(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    (pytester.path / "expected_skips.txt").write_text("", encoding="utf-8")
    pytester.makepyfile(PASSES + SKIPS + "def test_tells(record_property): record_property('n', 7)")

    result = pytester.runpytest_subprocess("-n", "2")

    assert result.ret == 1
    result.stdout.fnmatch_lines(["n: 7", "*unexpected skips*", "*no such device: zebra"])
    assert re.search(r"=== 2 passed, 1 skipped in [0-9.]+s", result.outlines[-1])
