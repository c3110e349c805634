"""Any range of any parameter of a committed checkpoint: resharding is reading.

The ranks' JSONs say which elements of a parameter lie where; they are checked on opening and make a sorted list of
ranges per (parameter, kind). `read` finds the first range by bisection. What it returns has been hashed: each reader
checks the blocks that hold its ranges (fmscale/training/verified_file.py), and no others.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmscale.errors import CheckpointError
from fmscale.training.checkpoint_format import Commit, check_names, check_size, read_rank
from fmscale.training.fragment_file import Range
from fmscale.training.verified_file import VerifiedFile

if TYPE_CHECKING:
    import torch  # listing and verifying checkpoints need no torch


class CheckpointReader:
    """Any range of any parameter of one checkpoint.

    Opening checks the JSONs, what no range will lead to (sizes, headers), and that no file is missing or foreign.
    Raises DamagedError, as any method does for a block of a data file that is not as it was written.
    """

    def __init__(self, directory: Path, commit: Commit) -> None:
        self.directory, self.commit = directory, commit
        self.step, self.rows, self.state, self.params = commit.step, commit.rows, commit.state, commit.params
        self._records = [
            read_rank(directory, rank, step=commit.step, term=commit.term, listed=listed)
            for rank, listed in enumerate(commit.ranks)
        ]
        check_names(directory, commit.world, marker=True)
        self._ranges: dict[tuple[str, str], list[tuple[int, int, int, int]]] = defaultdict(list)
        """start, numel, rank, byte of the rank's data file"""
        self._files = [VerifiedFile(directory, record.data) for record in self._records]
        for record, file in zip(self._records, self._files, strict=True):
            check_size(directory, record.data)
            file.verify([(0, record.unread())])
            starts = record.starts()
            for f in record.fragments:
                self._ranges[f.param, f.kind].append((f.start, f.numel, record.rank, starts[f.kind] + 4 * f.offset))
        for ranges in self._ranges.values():
            ranges.sort()

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(4 * f.numel for record in self._records for f in record.fragments)

    def verify(self, wanted: Iterable[Range] | None = None) -> None:
        """Hash all blocks that hold `wanted`, which `read` would do one range after the other; None: every byte.

        Raises CheckpointError as `read`.
        """
        spans: list[list[tuple[int, int]]] = [[] for _ in self._files]
        if wanted is None:
            spans = [[(0, record.data.bytes)] for record in self._records]
        else:
            for request in wanted:
                for rank, start, stop in self._spans(*request):
                    spans[rank].append((start, stop))
        for file, of_file in zip(self._files, spans, strict=True):
            if of_file:
                file.verify(of_file)

    def close(self) -> None:
        """Let go of the files; they are opened again when they are needed."""
        for file in self._files:
            file.close()

    def whole(self, param: str, kind: str) -> torch.Tensor:
        """All of a flattened parameter or moment."""
        return self.read(param, kind, 0, int(np.prod(self.params[param], dtype=np.int64)))

    def read(self, param: str, kind: str, start: int, numel: int) -> torch.Tensor:
        """Elements [start, start + numel) of the flattened parameter or moment: 1-D fp32, a copy.

        Raises CheckpointError for a parameter, kind or range that the checkpoint does not hold.
        """
        import torch

        out = np.empty(numel, "<f4")
        raw, filled = out.view(np.uint8).data, 0
        for rank, first, stop in self._spans(param, kind, start, numel):
            self._files[rank].read_into(first, raw[filled : filled + stop - first])
            filled += stop - first
        return torch.from_numpy(out.astype(np.float32, copy=False))

    def _spans(self, param: str, kind: str, start: int, numel: int) -> Iterator[tuple[int, int, int]]:
        """(rank, start, stop): the bytes of whose data file hold the elements, in their order."""
        ranges = self._ranges.get((param, kind), [])
        total = int(np.prod(self.params[param], dtype=np.int64)) if ranges else 0
        if not (ranges and start >= 0 and numel >= 0 and start + numel <= total):
            raise CheckpointError(
                f"checkpoint {self.commit.name} does not fit this model",
                expected=f"{param} ({kind}), elements {start} to {start + numel}",
                found=f"{total} elements of it" if ranges else "no such parameter",
                do="use the model settings of the run's config.yaml",
            )
        at = bisect.bisect_right(ranges, start, key=lambda r: r[0]) - 1
        found = 0
        while found < numel:
            first, length, rank, place = ranges[at]
            skip = start + found - first
            take = min(length - skip, numel - found)
            assert 0 <= skip < length, f"{param} ({kind}): no range holds element {start + found}"
            yield rank, place + 4 * skip, place + 4 * (skip + take)
            found, at = found + take, at + 1
