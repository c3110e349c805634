"""Everything that is wrong with one checkpoint directory, for `fmscale checkpoint verify`: resume stops at the first.

Each file is read once. What cannot be checked, because the file that holds its hash is damaged, is said to be so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fmscale.errors import CheckpointError
from fmscale.training.checkpoint_format import (
    check_file,
    data_name,
    foreign_files,
    json_name,
    parse_directory_name,
    read_commit,
    read_rank,
    visible_names,
)

T = TypeVar("T")


def survey(directory: Path, advance: Callable[[int], None] | None = None) -> list[str]:
    """One line for each thing that is wrong, naming the file; none: every byte holds.

    advance: is told bytes of tensor files as they are read. Raises CheckpointError if there is no such directory.
    """
    numbers = parse_directory_name(directory.name)
    if numbers is None or not directory.is_dir():
        raise CheckpointError(
            "no such checkpoint",
            expected="one that `fmscale checkpoint list` shows",
            found=str(directory),
            do="choose another",
        )
    wrong: list[str] = []

    def tell(error: CheckpointError) -> None:
        wrong.append(f"{error.found}; expected {error.expected}")

    def checked(check: Callable[[], T]) -> T | None:
        try:
            return check()
        except CheckpointError as error:
            tell(error)
            return None

    commit = checked(lambda: read_commit(directory))
    present = set(visible_names(directory))
    world = commit.world if commit else sum(name.endswith(".json") for name in present if name.startswith("rank-"))
    for error in foreign_files(directory, world, marker=True):
        tell(error)
    step, term = numbers
    for rank in range(world):
        listed = commit.ranks[rank] if commit else None
        record = checked(lambda r=rank, of=listed: read_rank(directory, r, step=step, term=term, listed=of))  # type: ignore[misc]
        if record is not None:
            checked(lambda of=record.data: check_file(directory, of, advance))  # type: ignore[misc]
        elif data_name(rank) in present:
            wrong.append(f"{directory / data_name(rank)} cannot be checked: its hash stands in {json_name(rank)}")
    return wrong
