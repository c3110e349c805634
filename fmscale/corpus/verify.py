"""Every byte of a corpus, checked; and what is in it, told: behind `fmscale data verify` and `fmscale data inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Report:
    generations: int
    shards: int
    chunks: int
    tokens: int
    """Input tokens verified."""
    bytes: int
    seconds: float
    damage: tuple[str, ...]
    """One line for each shard or chunk that is not as written; empty if all is well."""
    foreign: tuple[str, ...]
    """Files in the directory that no manifest names: ignored when reading."""

    def check(self) -> None:
        """Raises DataError if there is damage."""
        raise NotImplementedError


def verify(path: str | Path) -> Report:
    """Hash all of every generation, check each document table, token range and overlap.

    Raises DataError for what makes the rest unreadable (marker, manifest, index); collects the rest in `damage`.
    """
    raise NotImplementedError


def inspect(path: str | Path) -> dict[str, Any]:
    """Plain JSON values: counts, splits, tokenizer, recipe, and the beginning of the first document, decoded."""
    raise NotImplementedError
