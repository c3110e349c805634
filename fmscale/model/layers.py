"""The parts of a Llama-style decoder, single-device and without state of their own.

Shapes: B sequences of a micro-batch, T time, D model width, H query heads, G key-value heads, K head width,
F feed-forward width, V padded vocabulary.

No module holds a buffer: `.to(bfloat16)` casts buffers too, and positions and frequencies in bfloat16 are wrong from
position 257 on. What would be a buffer is computed in the forward, in float32.

Every linear map is without bias (Touvron et al. 2023, LLaMA).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from fmscale.config import ModelConfig
from fmscale.model.mask import Mask

Rotation = tuple[Tensor, Tensor]
"""cos_BT1K and sin_BT1K in float32, the sine with the sign of the half-rotation in it; see `rotation`."""

NEVER = -1e9
"""Logit of a token that does not exist. Finite, so that no arithmetic on it gives NaN; exp(NEVER - x) is 0 exactly."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019), in float32, rounded once at the end."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        return functional.rms_norm(x_BTD, self.weight.shape, self.weight, self.eps)


def rotation(positions_BT: Tensor, head_dim: int, theta: float) -> Rotation:
    """Cosine and sine of position x theta^(-2i/K), each K/2 wide, written twice side by side (Su et al. 2021, RoPE)."""
    exponents = torch.arange(0, head_dim, 2, device=positions_BT.device, dtype=torch.float32) / head_dim
    angles_BT1k = positions_BT[:, :, None, None].float() * theta**-exponents
    cos_BT1k, sin_BT1k = angles_BT1k.cos(), angles_BT1k.sin()
    return torch.cat((cos_BT1k, cos_BT1k), -1), torch.cat((-sin_BT1k, sin_BT1k), -1)


def rotate(x_BTHK: Tensor, cos_sin: Rotation) -> Tensor:
    """Turn each pair (x[i], x[i + K/2]) by its angle. Hugging Face Llama pairs so; the paper pairs (x[2i], x[2i+1])."""
    cos_BT1K, sin_BT1K = cos_sin
    swapped_BTHK = torch.roll(x_BTHK, x_BTHK.shape[-1] // 2, -1)
    return (x_BTHK * cos_BT1K + swapped_BTHK * sin_BT1K).to(x_BTHK.dtype)


class Attention(nn.Module):
    """Masked by `mask.py`; G key-value heads each serve H / G query heads (Ainslie et al. 2023, GQA)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.query = nn.Linear(config.d_model, width, bias=False)
        self.key = nn.Linear(config.d_model, kv_width, bias=False)
        self.value = nn.Linear(config.d_model, kv_width, bias=False)
        self.output = nn.Linear(width, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor, cos_sin: Rotation, mask: Mask) -> Tensor:
        query_BTHK = rotate(self.query(x_BTD).unflatten(-1, (-1, self.head_dim)), cos_sin)
        key_BTGK = rotate(self.key(x_BTD).unflatten(-1, (-1, self.head_dim)), cos_sin)
        value_BTGK = self.value(x_BTD).unflatten(-1, (-1, self.head_dim))
        mixed_BHTK = attend(query_BTHK.transpose(1, 2), key_BTGK.transpose(1, 2), value_BTGK.transpose(1, 2), mask)
        out_BTD: Tensor = self.output(mixed_BHTK.transpose(1, 2).flatten(2))
        return out_BTD


def attend(query_BHTK: Tensor, key_BGTK: Tensor, value_BGTK: Tensor, mask: Mask = None) -> Tensor:
    """softmax(query key^T / sqrt(K), where `mask` lets see) value, as [B, H, T, K].

    torch's fused kernel, except for short bfloat16 sequences on a CPU, where it is no faster than in float32: two
    matmuls and a softmax take 9 ms instead of 23 (B 8, H 4, G 2, T 256, K 64, forward and backward, one core).
    """
    B, H, T, K = query_BHTK.shape
    G = key_BGTK.shape[1]
    if isinstance(mask, BlockMask):
        flex = _compiled_flex() if query_BHTK.is_cuda else flex_attention
        tiled_BHTK: Tensor = flex(  # type: ignore[operator]
            query_BHTK, key_BGTK, value_BGTK, block_mask=mask, enable_gqa=H != G
        )
        return tiled_BHTK
    if not (query_BHTK.device.type == "cpu" and query_BHTK.dtype == torch.bfloat16 and T <= 1024):
        fused_BHTK: Tensor = functional.scaled_dot_product_attention(
            query_BHTK, key_BGTK, value_BGTK, mask, is_causal=mask is None, enable_gqa=H != G
        )
        return fused_BHTK
    if mask is None:
        unseen = torch.full((T, T), -torch.inf, dtype=query_BHTK.dtype).triu_(1)
    else:
        unseen = torch.where(mask, 0.0, -torch.inf).to(query_BHTK.dtype)
    # The H / G query heads of one key head are one longer matrix: keys and values are not repeated.
    scores = (query_BHTK * K**-0.5).reshape(B * G, H // G * T, K) @ key_BGTK.reshape(B * G, T, K).transpose(1, 2)
    weights = (scores.view(B, H, T, T) + unseen).softmax(-1)
    mixed: Tensor = weights.view(B * G, H // G * T, T) @ value_BGTK.reshape(B * G, T, K)
    return mixed.view(B, H, T, K)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    """flex_attention is a kernel only once compiled; uncompiled it makes all B H T^2 scores.

    One graph or an error: past torch's limit of recompilations it would else fall back to that without a word.
    """
    return torch.compile(flex_attention, fullgraph=True)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.ff_width, bias=False)
        self.up = nn.Linear(config.d_model, config.ff_width, bias=False)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.down(functional.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return out_BTD


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x_BTD: Tensor, cos_sin: Rotation, mask: Mask) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_sin, mask)
        out_BTD: Tensor = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        return out_BTD


class Embedding(nn.Module):
    """Token -> vector; the table has the padded vocabulary's height."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.padded_vocab_size, config.d_model))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return functional.embedding(tokens_BT, self.weight)


class Head(nn.Module):
    """Vector -> logits. `weight` is the model's own, or the embedding's where they are tied."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.padded_vocab_size, config.d_model))
        self.vocab_size = config.vocab_size

    def forward(self, x_BTD: Tensor) -> Tensor:
        return logits(x_BTD, self.weight, self.vocab_size)


def logits(x_BTD: Tensor, weight_VD: Tensor, vocab_size: int) -> Tensor:
    """Logits over the padded vocabulary. Rows of the table from `vocab_size` on stand for no token and get NEVER.

    NEVER arrives as a bias of the matmul, which costs nothing, and takes no part in the loss: the probability there is
    exactly 0, and so is the gradient of those rows.
    """
    padded = weight_VD.shape[0]
    if padded == vocab_size:
        return functional.linear(x_BTD, weight_VD)
    bias_V = torch.zeros(padded, device=x_BTD.device, dtype=x_BTD.dtype)
    bias_V[vocab_size:] = NEVER
    return functional.linear(x_BTD, weight_VD, bias_V)
