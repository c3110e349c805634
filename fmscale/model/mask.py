"""Which tokens a token attends to: all up to itself (`causal`), or those of its own document (`document`).

    documents_BT = number of positions that are 0, up to and with this one       a document begins at position 0
    i sees j     = j <= i and documents[i] == documents[j]

Rotary positions restart with the document too, so a document in the middle of a row is the document alone.

One rule, two forms, the same for all heads: `dense_mask`, B T^2 booleans for a CPU, and `block_mask`, which tells
flex_attention (Dong et al. 2024) which tiles of BLOCK x BLOCK are skipped, since nothing in them is seen, and which go
unmasked, since all is. Documents follow one another, so their numbers at the ends of a tile say what it holds:
B (T / BLOCK)^2 comparisons, where torch's own `create_block_mask` looks at B T^2 pairs. Cheap enough to be made again
by every block of a pipeline.

torch's `varlen_attn` does the same job by cumulative lengths. It runs on no CPU and has no fp32, so that nothing of it
could be held against the reference engine here, and packing rows into it moves every tensor once more.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Tokens along a side of a tile: what flex_attention's kernels are tuned for."""

Mask = Tensor | BlockMask | None
"""dense_mask, block_mask, or None: causal, for which kernels have a faster way of their own."""


def attention_mask(positions_BT: Tensor, attention: Literal["causal", "document"]) -> Mask:
    """What `layers.attend` takes, in the form for the device of `positions_BT`."""
    if attention == "causal":
        return None
    documents_BT = documents(positions_BT)
    return block_mask(documents_BT) if documents_BT.is_cuda else dense_mask(documents_BT)


def documents(positions_BT: Tensor) -> Tensor:
    """Number of each token's document in its row, int32, never falling along T."""
    return (positions_BT == 0).cumsum(-1, dtype=torch.int32)


def dense_mask(documents_BT: Tensor) -> Tensor:
    """[B, 1, T, T] booleans: query token by key token, true where it is seen; the 1 stands for all heads."""
    return (documents_BT[:, None, :, None] == documents_BT[:, None, None, :]).tril()


def block_mask(documents_BT: Tensor) -> BlockMask:
    """The same for flex_attention. Takes numbers that never fall along T, and trusts that."""
    T = documents_BT.shape[1]
    start_n = torch.arange(0, T, BLOCK, device=documents_BT.device)  # n tiles along T, the last one maybe not filled
    first_Bn1 = documents_BT[:, start_n, None]
    last_Bn1 = documents_BT[:, (start_n + BLOCK - 1).clamp(max=T - 1), None]
    first_B1n, last_B1n = first_Bn1.mT, last_Bn1.mT
    # Query tiles down, key tiles across. The diagonal is always masked within; above it is the future.
    touched_Bnn = (last_B1n >= first_Bn1) & (start_n <= start_n[:, None])
    filled_n1 = (start_n + BLOCK <= T)[:, None]
    whole_Bnn = (first_B1n == last_Bn1) & (start_n < start_n[:, None]) & filled_n1

    def seen(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (documents_BT[b, key] == documents_BT[b, query])

    return BlockMask.from_kv_blocks(
        *_listed(touched_Bnn & ~whole_Bnn), *_listed(whole_Bnn), BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(T, T)
    )


def _listed(tiles_Bnn: Tensor) -> tuple[Tensor, Tensor]:
    """Count [B, 1, n] of the tiles in each row, and their columns [B, 1, n, n], those first that count."""
    columns_Bnn = tiles_Bnn.byte().argsort(dim=-1, descending=True, stable=True)
    return tiles_Bnn.sum(-1, dtype=torch.int32)[:, None], columns_Bnn.int()[:, None].contiguous()
