"""FLOPs and parameters against counting by torch, by hand, and against published sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fmscale.config import ModelConfig
from fmscale.model.decoder import Decoder, parameter_shapes
from fmscale.model.loss import token_loss_sum
from fmscale.observe import flops
from fmscale.observe.flops import (
    Peak,
    _from_table,
    bf16_gain,
    explain,
    fast_bf16,
    flops_per_token,
    mfu,
    multiplied_parameters,
    parameter_count,
    peak_flops,
)

SMALL = ModelConfig(vocab_size=256, d_model=64, n_layers=2)
LLAMA_2_7B = ModelConfig(vocab_size=32_000, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, d_ff=11_008)


def test_parameters_of_llama_2_7b_are_the_published_ones() -> None:
    assert parameter_count(LLAMA_2_7B) == 6_738_415_616
    assert multiplied_parameters(LLAMA_2_7B) == 6_738_415_616 - 32_000 * 4096 - 65 * 4096  # no table, no norms


def test_by_hand() -> None:
    # per layer: query and output 2 x 64 x 64, key and value 2 x 64 x 32, SwiGLU 3 x 64 x 192; head 256 x 64
    per_layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192
    assert multiplied_parameters(SMALL) == 2 * per_layer + 256 * 64
    assert flops_per_token(SMALL, seq_len=128) == 6 * (2 * per_layer + 256 * 64) + 12 * 2 * 64 * 128
    line = explain(SMALL, seq_len=128)
    assert f"{multiplied_parameters(SMALL):,}" in line
    assert f"= {flops_per_token(SMALL, 128):,} FLOPs" in line


@pytest.mark.parametrize("tied", [False, True])
def test_torch_counts_the_same_operations(tied: bool) -> None:
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    B, T = 2, 128
    model = Decoder(config).to(torch.bfloat16)  # attention as plain matmuls, which the counter sees whole
    tokens = torch.zeros((B, T), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        token_loss_sum(model(tokens), tokens).backward()
    assert counter.get_total_flops() == flops_per_token(config, T) * B * T
    assert parameter_count(config) == sum(p.numel() for p in model.parameters())
    assert parameter_shapes(config) == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_utilisation() -> None:
    peak = Peak(flops_per_token(SMALL, 128) * 1000.0, "made up")
    assert mfu(500, SMALL, 128, peak, world_size=1) == pytest.approx(0.5)
    assert mfu(500, SMALL, 128, peak, world_size=2) == pytest.approx(0.25)
    assert mfu(500, SMALL, 128, None, world_size=2) is None


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA A10", "bf16", 125e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("Tesla V100-SXM2-16GB", "fp32", 15.7e12),
    ],
)
def test_peaks_by_name(name: str, precision: str, expected: float) -> None:
    peak = _from_table(name, precision)  # type: ignore[arg-type]
    assert peak is not None
    assert peak.flops_per_s == expected


def test_no_peak_is_invented() -> None:
    for name in ("NVIDIA Unheard Of", "NVIDIA L40", "NVIDIA A10G", "Tesla V100-SXM2-16GB"):
        assert _from_table(name, "bf16") is None, name


def test_gain_of_bf16_is_the_ratio_of_the_two_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bf16_gain() > 0, "whatever this machine is and does"
    for peaks, gain, fast in (((6e11, 2e11), 3.0, True), ((2e11, 2e11), 1.0, False), ((4e10, 2e11), 0.2, False)):
        found = dict(zip(("bf16", "fp32"), peaks, strict=True))
        monkeypatch.setattr(flops, "_measured", lambda precision, found=found: Peak(found[precision], "told"))
        assert bf16_gain() == pytest.approx(gain)
        assert fast_bf16() is fast


def test_a_cpu_is_measured() -> None:
    peak = peak_flops(torch.device("cpu"), "fp32")
    assert peak is not None
    assert 1e8 < peak.flops_per_s < 1e15
    assert "measured" in peak.source
