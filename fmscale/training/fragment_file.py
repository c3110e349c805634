"""One rank's part of a checkpoint: a safetensors file with one flat fp32 tensor per kind, written in one pass.

A *fragment* is a contiguous range of one flattened parameter (kind `master`) or of one of its optimizer moments. The
fragments of a kind are laid end to end in the tensor named by the kind; where each went is in the rank's JSON. Sizes
are known beforehand, so the header comes first and the data is streamed. Any safetensors client opens the file.

The data comes from live tensors, which must stand still meanwhile (`LiveFragments`), or from a copy of the whole file
in host memory (`fmscale/training/host_image.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fmscale.training.block_file import BLOCK_BYTES

if TYPE_CHECKING:
    import torch  # the supervisor and `fmscale checkpoint` read these files without it

Range = tuple[str, str, int, int]
"""(param, kind, start, numel): elements [start, start + numel) of a flattened parameter or moment."""


class FragmentLike(Protocol):
    """What is needed of `fmscale.training.engine.Fragment`."""

    @property
    def param(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def tensor(self) -> torch.Tensor: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, kw_only=True)
class FragmentRecord:
    """Elements [start, start + numel) of `param` lie at elements [offset, offset + numel) of the tensor `kind`."""

    param: str
    kind: str
    start: int
    numel: int
    offset: int
    shape: tuple[int, ...]
    """Of the whole parameter."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything stands in a rank's file."""

    header: bytes
    """8 bytes of length, JSON padded to a multiple of 8."""
    records: tuple[FragmentRecord, ...]
    """In the order of the file."""
    bytes: int
    """Of the whole file."""


@runtime_checkable
class Part(Protocol):
    """What a rank writes: `LiveFragments` or a `HostImage`."""

    layout: Layout
    aligned: bool
    """Whether blocks begin and end at multiples of PAGE_BYTES, in memory too; the last one is padded then."""

    def blocks(self) -> Iterator[memoryview]:
        """The bytes of the file in order."""


class LiveFragments:
    """The caller's tensors, which do not change while they are written; nothing is copied beyond them."""

    aligned = False

    def __init__(self, fragments: Iterable[FragmentLike]) -> None:
        self._fragments = in_file_order(fragments)
        self.layout = layout_of(self._fragments)

    def blocks(self) -> Iterator[memoryview]:
        yield memoryview(self.layout.header)
        for fragment in self._fragments:
            values = _little_endian(fragment.tensor).view(np.uint8)
            for at in range(0, len(values), BLOCK_BYTES):
                yield values[at : at + BLOCK_BYTES].data


def in_file_order(fragments: Iterable[FragmentLike]) -> list[FragmentLike]:
    """Kind by kind, otherwise as given; empty ones are left out."""
    return sorted((f for f in fragments if f.tensor.numel()), key=lambda f: f.kind)


def layout_of(fragments: Sequence[FragmentLike]) -> Layout:
    """fragments: 1-D fp32 tensors in the order of the file."""
    lengths: dict[str, int] = {}
    records = []
    for fragment in fragments:
        tensor, total = fragment.tensor, int(np.prod(fragment.shape, dtype=np.int64))
        assert (tensor.ndim, str(tensor.dtype)) == (1, "torch.float32"), f"{fragment.param}: a fragment is 1-D fp32"
        assert 0 <= fragment.start <= total - tensor.numel(), f"{fragment.param}: a fragment beyond the parameter's end"
        offset = lengths.get(fragment.kind, 0)
        lengths[fragment.kind] = offset + tensor.numel()
        records.append(
            FragmentRecord(
                param=fragment.param,
                kind=fragment.kind,
                start=fragment.start,
                numel=tensor.numel(),
                offset=offset,
                shape=tuple(fragment.shape),
            )
        )
    entries, at = {}, 0
    for kind, length in lengths.items():
        entries[kind] = {"dtype": "F32", "shape": [length], "data_offsets": [at, at + 4 * length]}
        at += 4 * length
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return Layout(header=header, records=tuple(records), bytes=len(header) + at)


def _little_endian(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype="<f4")
