"""A rank's checkpoint file as it will stand on disk, in host memory that is allocated once and filled at each save.

Filling is all that training waits for: one copy of masters and moments. The header never changes, since a rank owns the
same fragments for all of a run. Memory is page-aligned (so that the writer may go round the page cache), in huge pages
where the system has them, touched at once (so that too little of it shows before training begins), and known to CUDA.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from fmscale.training.block_file import BLOCK_BYTES, PAGE_BYTES
from fmscale.training.fragment_file import FragmentLike, Layout, in_file_order

CHUNK = 1 << 20
"""Elements that a thread copies at once. torch's own copy_ waits for all of its threads after every tensor: on two busy
cores 600 MB took 1.1 s so, and 0.15 s with a pool of threads that wait for one another once."""


class HostImage:
    aligned = True

    def __init__(self, layout: Layout, device: torch.device | None = None) -> None:
        """device: where the fragments are, the CPU if not given."""
        self.layout = layout
        self._length = layout.bytes + -layout.bytes % PAGE_BYTES
        self._memory = mmap.mmap(-1, self._length)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        whole.zero_()
        self._pool = ThreadPoolExecutor(torch.get_num_threads(), "copy")
        self._memory[: len(layout.header)] = layout.header
        self._on_gpu = device is not None and device.type == "cuda"
        if self._on_gpu:  # page-locked, for the full speed of the bus; where that fails it is slower and not wrong
            torch.cuda.cudart().cudaHostRegister(whole.data_ptr(), self._length, 0)  # type: ignore[no-untyped-call]
        data = whole[len(layout.header) : layout.bytes].view(torch.float32)
        self._views = torch.split(data, [record.numel for record in layout.records]) if layout.records else ()

    def fill(self, fragments: Iterable[FragmentLike]) -> None:
        """Copy what the rank owns; afterwards the tensors may change."""
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        for fragment, record, view in zip(in_file_order(fragments), self.layout.records, self._views, strict=True):
            now = (fragment.param, fragment.kind, fragment.start, fragment.tensor.numel())
            then = (record.param, record.kind, record.start, record.numel)
            assert now == then, f"a rank owns {now} where it owned {then} before"
            if self._on_gpu:
                view.copy_(fragment.tensor.detach(), non_blocking=True)
            else:
                copies += zip(torch.split(view, CHUNK), torch.split(fragment.tensor.detach(), CHUNK), strict=True)
        if self._on_gpu:
            torch.cuda.synchronize()
        list(self._pool.map(lambda pair: np.copyto(pair[0].numpy(), pair[1].numpy()), copies))

    def blocks(self) -> Iterator[memoryview]:
        """At least two where there are two pages."""
        step = min(BLOCK_BYTES, max(PAGE_BYTES, self._length // 2 // PAGE_BYTES * PAGE_BYTES))
        view = memoryview(self._memory)
        for at in range(0, self._length, step):
            yield view[at : at + step]
