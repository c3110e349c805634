"""Texts that were agreed on. After a change that is meant: `UPDATE_GOLDEN=1 pytest FILE`, and read the difference."""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def assert_as_agreed(text: str, name: str) -> Path:
    """`text` is the content of golden/NAME; its path."""
    file = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()
    return file
