"""How much arithmetic a token costs, and how much of the hardware's peak a run reaches.

    FLOPs per trained token = 6 N + 12 L W T
    N  parameters that are multiplied: all matrices, the head among them (the embedding too where it is the head)
    L layers, W = query heads x head width, T tokens of a sequence

A multiply and an add per parameter forward, twice that backward; attention's scores and mixing are 2 L W T
multiply-adds forward. From PaLM (Chowdhery et al. 2022, appendix B), whose MFU this is: masking, causal or by document,
is not taken off, recomputation does not count, an embedding look-up is no arithmetic (as in Kaplan et al. 2020).
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import Literal

import torch

from fmscale.config import ModelConfig
from fmscale.model.decoder import parameter_shapes

Precision = Literal["fp32", "bf16"]

# Dense peak in FLOP/s, (bf16, fp32), by words of the device's name; the first entry whose words are all in it counts.
# From data sheets: NVIDIA H100 (2023), H200 (2024), B200 (2024), A100 (2021), L40S and L4 (2023), A10 (2021), V100
# (2020, no bf16); AMD MI300X (2023). fp32 without TF32; bf16 is half of what a sheet gives "with sparsity".
_PEAKS: tuple[tuple[str, float | None, float | None], ...] = (
    ("H100 PCIe", 756e12, 51e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100", 989e12, 67e12),
    ("H200 NVL", 835e12, 60e12),
    ("H200", 989e12, 67e12),
    ("B200", 2250e12, None),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L4", 121e12, 30.3e12),
    ("A10", 125e12, 31.2e12),
    ("V100 SXM2", None, 15.7e12),
    ("MI300X", 1307e12, 163.4e12),
)


@dataclass(frozen=True)
class Peak:
    """FLOP/s that one rank's hardware could reach."""

    flops_per_s: float
    source: str
    """Where the number is from, for people."""


def parameter_count(config: ModelConfig) -> int:
    """All parameters, the padding of the vocabulary included, tied ones once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def multiplied_parameters(config: ModelConfig) -> int:
    """N above."""
    shapes = parameter_shapes(config)
    if not config.tie_embeddings:
        del shapes["embedding.weight"]
    return sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Forward and backward."""
    width = config.n_heads * config.head_dim
    return 6 * multiplied_parameters(config) + 12 * config.n_layers * width * seq_len


def explain(config: ModelConfig, seq_len: int) -> str:
    """The formula with its numbers, on one line."""
    N, L, W = multiplied_parameters(config), config.n_layers, config.n_heads * config.head_dim
    total = flops_per_token(config, seq_len)
    return f"6 N + 12 L W T = 6 x {N:,} + 12 x {L} x {W} x {seq_len} = {total:,} FLOPs per trained token"


def mfu(tokens_per_s: float, config: ModelConfig, seq_len: int, peak: Peak | None, world_size: int) -> float | None:
    """Model FLOPs utilisation in [0, 1]: tokens/s of the whole run over what all ranks' hardware could do."""
    if peak is None:
        return None
    return tokens_per_s * flops_per_token(config, seq_len) / (peak.flops_per_s * world_size)


def peak_flops(device: torch.device, precision: Precision) -> Peak | None:
    """Peak of one rank: from the table by the GPU's name, measured on a CPU, None where nobody knows."""
    if device.type == "cpu":
        return _measured(precision)
    name = torch.cuda.get_device_name(device)
    return _from_table(name, precision)


def bf16_gain() -> float:
    """Speed of a bf16 matmul over that of an fp32 one on this rank's CPU threads, measured in under a second.

    About 4 with AVX512-BF16, 1 with AVX512 alone, 0.2 and less with AVX2 alone.
    """
    return _measured("bf16").flops_per_s / _measured("fp32").flops_per_s


def fast_bf16() -> bool:
    """Whether training in bf16 pays on this rank's CPU threads."""
    return bf16_gain() > 1.5


def _from_table(name: str, precision: Precision) -> Peak | None:
    words = set(re.findall(r"\w+", name.lower()))  # whole words: an L40 is no L4, an A10G no A10
    for device, bf16, fp32 in _PEAKS:
        if words.issuperset(device.lower().split()):
            value = bf16 if precision == "bf16" else fp32
            return Peak(value, f"data sheet of {device}, {precision}") if value else None
    return None


def _measured(precision: Precision, size: int = 1024) -> Peak:
    """Fastest of a few square matmuls on this rank's threads; about 50 ms in bf16 and 0.1 s in fp32 on one core."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > 1.0:  # bf16 by AVX2 alone: slow beyond doubt
            break
    best = 2 * size**3 / min(seconds)
    return Peak(best, f"measured: {size}^3 {precision} matmul, {torch.get_num_threads()} threads of this CPU")
