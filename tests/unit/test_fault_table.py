"""docs/faults.md names tests that exist, and has a row for every fault that it must have."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if re.match(r"\| F\d\d ", line)]
REQUIRED = [*range(1, 8), 9, 12, 13, 15, *range(25, 35), 36, 37, *range(43, 47), 48, 50]


def test_every_fault_has_one_row_in_order() -> None:
    assert [row.split()[1] for row in ROWS] == [f"F{number:02}" for number in REQUIRED]
    assert all(row.count("|") == 6 for row in ROWS), "five columns"


def test_every_test_that_the_table_names_exists() -> None:
    checked = 0
    for row in ROWS:
        for file, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", row):
            path = ROOT / file
            assert path.is_file(), f"{row[:6]} names {file}"
            functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
            assert any(function.startswith("test_") for function in functions)
            assert not name or name in functions, f"{row[:6]} names {file}::{name}"
            checked += 1
    assert checked > 30


def test_every_row_names_a_test() -> None:
    for row in ROWS:
        assert "tests/" in row.split("|")[4], f"{row[:6]} has no test"
