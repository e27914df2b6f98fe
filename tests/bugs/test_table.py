"""The page of bugs names tests that there are, and codes that these tests assert."""

import re
from pathlib import Path

from tranship.schema.diagnostics import known_codes

TESTS = Path(__file__).parent
PAGE = (TESTS.parents[1] / "docs/bugs.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+) \| `(test_\w+\.py)` \|$", PAGE, re.MULTILINE)
CODE = re.compile(r"\bTS\d{3}\b")


def test_every_row_has_a_test_that_asserts_its_codes() -> None:
    for row, name in ROWS:
        text = (TESTS / name).read_text(encoding="utf-8")
        assert set(CODE.findall(row)) <= set(CODE.findall(text)), name


def test_every_test_has_a_row_with_its_codes() -> None:
    for path in TESTS.glob("test_*.py"):
        asserted = set(CODE.findall(path.read_text(encoding="utf-8")))
        if path.name != Path(__file__).name:
            listed = [row for row, name in ROWS if name == path.name]
            assert asserted - set(CODE.findall(" ".join(listed))) <= {"TS202", "TS187"}, path.name


def test_every_code_of_the_page_is_known() -> None:
    assert set(CODE.findall(PAGE)) <= set(known_codes())
