"""Any range of any parameter of a committed checkpoint: resharding is reading.

The ranks' JSONs say which elements of a parameter lie where; they are checked on opening and make a sorted list of
ranges per (parameter, kind). `read` finds the first range by bisection and copies out of the memory-mapped files.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmscale.errors import CheckpointError
from fmscale.training.checkpoint_format import Commit, RankRecord, check_file, check_names, data_name, read_rank
from fmscale.training.fragment_file import map_tensors

if TYPE_CHECKING:
    import torch  # listing and verifying checkpoints need no torch


class CheckpointReader:
    """Any range of any parameter of one checkpoint. The ranks' JSONs are checked on opening."""

    def __init__(self, directory: Path, commit: Commit) -> None:
        self.directory, self.commit = directory, commit
        self.step, self.rows, self.state, self.params = commit.step, commit.rows, commit.state, commit.params
        self._records = [
            read_rank(directory, rank, step=commit.step, term=commit.term, listed=listed)
            for rank, listed in enumerate(commit.ranks)
        ]
        self._ranges: dict[tuple[str, str], list[tuple[int, int, int, int]]] = defaultdict(list)
        for record in self._records:
            for f in record.fragments:
                self._ranges[f.param, f.kind].append((f.start, f.numel, record.rank, f.offset))
        for ranges in self._ranges.values():
            ranges.sort()
        self._maps: dict[int, dict[str, np.memmap]] = {}

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(4 * f.numel for record in self._records for f in record.fragments)

    def verify_share(self, rank: int, world: int) -> None:
        """Read the files that fall to `rank` of `world` readers; together they read each byte once.

        Raises CheckpointError for a byte that is wrong, and on every reader for a file that is missing or foreign.
        """
        check_names(self.directory, self.commit.world, marker=True)
        for record in self._share(rank, world):
            check_file(self.directory, record.data)

    def _share(self, rank: int, world: int) -> list[RankRecord]:
        """The largest file to the reader that has least: stages of a pipeline, say, differ in size."""
        shares: list[list[RankRecord]] = [[] for _ in range(world)]
        loads = [0] * world
        for record in sorted(self._records, key=lambda record: -record.data.bytes):
            reader = loads.index(min(loads))
            shares[reader].append(record)
            loads[reader] += record.data.bytes
        return shares[rank]

    def whole(self, param: str, kind: str) -> torch.Tensor:
        """All of a flattened parameter or moment."""
        return self.read(param, kind, 0, int(np.prod(self.params[param], dtype=np.int64)))

    def read(self, param: str, kind: str, start: int, numel: int) -> torch.Tensor:
        """Elements [start, start + numel) of the flattened parameter or moment: 1-D fp32, a copy.

        Raises CheckpointError for a parameter, kind or range that the checkpoint does not hold.
        """
        ranges = self._ranges.get((param, kind), [])
        total = int(np.prod(self.params[param], dtype=np.int64)) if ranges else 0
        if not (ranges and start >= 0 and numel >= 0 and start + numel <= total):
            raise CheckpointError(
                f"checkpoint {self.commit.name} does not fit this model",
                expected=f"{param} ({kind}), elements {start} to {start + numel}",
                found=f"{total} elements of it" if ranges else "no such parameter",
                do="use the model settings of the run's config.yaml",
            )
        out = np.empty(numel, np.float32)
        at = bisect.bisect_right(ranges, start, key=lambda r: r[0]) - 1
        filled = 0
        while filled < numel:
            first, length, rank, offset = ranges[at]
            skip = start + filled - first
            take = min(length - skip, numel - filled)
            assert 0 <= skip < length, f"{param} ({kind}): no range holds element {start + filled}"
            out[filled : filled + take] = self._tensor(rank, kind)[offset + skip : offset + skip + take]
            filled, at = filled + take, at + 1
        import torch

        return torch.from_numpy(out)

    def _tensor(self, rank: int, kind: str) -> np.memmap:
        if rank not in self._maps:
            self._maps[rank] = map_tensors(self.directory / data_name(rank))
        return self._maps[rank][kind]
