"""Laws of the decoder: causal, shift-invariant, blind to the padded vocabulary, the same in pieces, the same draw."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fmscale.config import ModelConfig
from fmscale.corpus.batch import IGNORE
from fmscale.model.decoder import Decoder, init_parameters, init_weights, initial_values, parameter_shapes
from fmscale.model.layers import Embedding, attend
from fmscale.model.loss import token_loss_sum
from fmscale.model.pipeline_layers import canonical_name, pipeline_layers, tied_logits

CONFIG = ModelConfig(vocab_size=200, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2)


def decoder(config: ModelConfig = CONFIG, seed: int = 0) -> Decoder:
    model = Decoder(config)
    init_weights(model, config, seed)
    return model


def random_tokens(B: int, T: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_changes_no_logit_before_it(dtype: torch.dtype) -> None:
    model = decoder().to(dtype)
    tokens_BT = random_tokens(1, 24)
    changed_BT = tokens_BT.clone()
    changed_BT[0, 16] = (changed_BT[0, 16] + 1) % CONFIG.vocab_size
    before, after = model(tokens_BT), model(changed_BT)
    assert torch.equal(before[:, :16], after[:, :16])
    assert (before[:, 16:] != after[:, 16:]).any(-1).all(), "and every one from there on"


def test_only_differences_of_positions_matter() -> None:
    model, tokens_BT = decoder(), random_tokens(2, 24)
    positions_BT = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(model(tokens_BT), model(tokens_BT, positions_BT), rtol=0, atol=0)
    torch.testing.assert_close(model(tokens_BT), model(tokens_BT, positions_BT + 1000), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(tokens_BT), model(tokens_BT, positions_BT * 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_of_the_vocabulary_does_not_touch_the_loss(tied: bool, dtype: torch.dtype) -> None:
    config = ModelConfig(vocab_size=200, d_model=32, n_layers=1, tie_embeddings=tied)
    model = decoder(config).to(dtype)
    tokens_BT, labels_BT = random_tokens(2, 16), random_tokens(2, 16, seed=1)
    logits_BTV = model(tokens_BT)
    assert logits_BTV.shape == (2, 16, 256)
    loss = token_loss_sum(logits_BTV, labels_BT)
    unpadded = token_loss_sum(logits_BTV[..., :200], labels_BT)
    torch.testing.assert_close(loss, unpadded, rtol=1e-6, atol=0)
    loss.backward()
    table = model.head.weight.grad
    assert table is not None
    assert (table[:200] != 0).any()
    assert (table[200:] == 0).all()


@pytest.mark.parametrize("tied", [False, True])
def test_pipeline_layers_are_the_decoder_in_pieces(tied: bool) -> None:
    config = ModelConfig(vocab_size=200, d_model=32, n_layers=2, tie_embeddings=tied)
    layers = pipeline_layers(config)
    names = {}
    for index, layer in enumerate(layers):
        named = [(canonical_name(config, index, name), p) for name, p in layer.named_parameters()]
        init_parameters(named, config, seed=7)
        names.update({name: tuple(p.shape) for name, p in named})
    assert names == parameter_shapes(config)

    tokens_BT = random_tokens(2, 16)
    hidden: Any = (tokens_BT, torch.arange(16).expand(2, -1))
    for layer in layers[:-1]:
        hidden = layer(hidden)
    expected = decoder(config, seed=7)(tokens_BT)
    assert torch.equal(layers[-1](hidden), expected)
    if tied:
        assert isinstance(layers[0], Embedding)
        assert torch.equal(tied_logits(layers[0], hidden, config.vocab_size), expected)


def test_no_canonical_name_beyond_the_head() -> None:
    with pytest.raises(AssertionError, match="no pipeline layer 5"):
        canonical_name(CONFIG, 5, "weight")


def test_a_model_needs_its_vocabulary_first() -> None:
    with pytest.raises(AssertionError, match="vocab_size is filled in"):
        Decoder(ModelConfig())


def test_initial_weights_follow_the_table_and_nothing_but_seed_and_name() -> None:
    config = ModelConfig(vocab_size=2000, d_model=128, n_layers=8)
    assert torch.equal(initial_values("norm.weight", (128,), config, 0), torch.ones(128))
    for name, std in (("embedding.weight", 0.02), ("layers.3.mlp.down.weight", 0.02 / math.sqrt(16))):
        values = initial_values(name, (1024, 128), config, 0)
        assert values.std().item() == pytest.approx(std, rel=0.02)
        assert values.mean().item() == pytest.approx(0, abs=std / 50)
        assert torch.equal(values, initial_values(name, (1024, 128), config, 0))
        assert not torch.equal(values, initial_values(name, (1024, 128), config, 1))
        assert not torch.equal(values, initial_values("x." + name, (1024, 128), config, 0))


@given(
    rows=st.integers(1, 40),
    width=st.integers(2, 300),
    seed=st.integers(0, 9),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
@settings(max_examples=30, deadline=None)
def test_loss_and_its_gradient_are_torch_cross_entropy(rows: int, width: int, seed: int, dtype: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, width, generator=generator) * 5).to(getattr(torch, dtype)).requires_grad_()
    labels = torch.randint(0, width, (rows,), generator=generator, dtype=torch.int32)
    labels[torch.rand(rows, generator=generator) < 0.3] = IGNORE
    ours = token_loss_sum(logits[None], labels[None])
    (gradient,) = torch.autograd.grad(ours * 0.25, logits)
    theirs = functional.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE, reduction="sum")
    (expected,) = torch.autograd.grad(theirs * 0.25, logits)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    rtol = 1e-5 if dtype == "float32" else 2**-7  # one unit in the last place of bfloat16
    torch.testing.assert_close(gradient, expected, rtol=rtol, atol=1e-6)


def test_loss_in_pieces_is_the_loss_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(50)
    whole = token_loss_sum(logits[None], labels[None])
    (whole_gradient,) = torch.autograd.grad(whole, logits)
    monkeypatch.setattr("fmscale.model.loss._CPU_ELEMENTS", 64 * 7)
    pieces = token_loss_sum(logits[None], labels[None])
    (pieces_gradient,) = torch.autograd.grad(pieces, logits)
    assert torch.equal(whole, pieces)
    assert torch.equal(whole_gradient, pieces_gradient)


def test_rows_without_targets_weigh_nothing() -> None:
    model, tokens_BT = decoder(), random_tokens(2, 16)
    labels_BT = torch.full((2, 16), IGNORE)
    loss = token_loss_sum(model(tokens_BT), labels_BT)
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_attention_in_bfloat16_is_attention(key_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, h, 40, 16, generator=generator).bfloat16().requires_grad_() for h in (4, key_heads, key_heads)
    )
    exact_inputs = [x.detach().double().requires_grad_() for x in (query, key, value)]
    ours, exact = attend(query, key, value), attend(*exact_inputs)
    upstream = torch.randn(ours.shape, generator=generator)
    torch.testing.assert_close(ours.double(), exact, rtol=2**-6, atol=2**-6)
    ours.backward(upstream.bfloat16())
    exact.backward(upstream.double())
    for mine, reference in zip((query, key, value), exact_inputs, strict=True):
        assert mine.grad is not None
        assert reference.grad is not None
        error = (mine.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert error < 2**-6, f"relative error of a gradient {error:.4f}"
