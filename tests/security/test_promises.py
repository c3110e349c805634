"""SECURITY.md has a row for every threat, and names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if re.match(r"\| S\d+ ", line)]


def test_every_threat_has_a_row_and_every_row_a_test_that_exists() -> None:
    assert [row.split()[1] for row in ROWS] == [f"S{number}" for number in range(1, 16)]
    for row in ROWS:
        assert row.count("|") == 5, f"four columns: {row[:6]}"
        named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", row)
        assert named or row.startswith("| S10 "), f"{row[:6]} has neither a test nor a reason"
        for file, name in named:
            functions = {
                node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)
            }
            assert not name or name in functions, f"{row[:6]} names {file}::{name}"


def test_the_readme_leads_here() -> None:
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text()
