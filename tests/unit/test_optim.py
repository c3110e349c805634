"""Laws of the optimizer: what decays, and that a parameter in pieces is updated as the whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from fmscale.config import ModelConfig, OptimConfig
from fmscale.model.decoder import Decoder
from fmscale.training.optim import build_optimizer, parameter_groups, set_learning_rate


def test_matrices_decay_and_norms_do_not() -> None:
    model = Decoder(ModelConfig(vocab_size=128, d_model=32, n_layers=1))
    decayed, kept = parameter_groups(model.named_parameters(), weight_decay=0.3)
    assert decayed["weight_decay"] == 0.3
    assert kept["weight_decay"] == 0.0
    assert all(p.dim() == 2 for p in decayed["params"])
    assert all(p is q for p, q in zip(kept["params"], (p for p in model.parameters() if p.dim() == 1), strict=True))
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_a_part_of_a_model_without_norms_has_one_group() -> None:
    (group,) = parameter_groups([("embedding.weight", nn.Parameter(torch.zeros(4, 4)))], weight_decay=0.1)
    assert group["weight_decay"] == 0.1


def updated(values: torch.Tensor, gradients: list[torch.Tensor], cuts: list[int]) -> torch.Tensor:
    """`values` after one AdamW step per gradient, as the pieces that `cuts` makes of it."""
    edges = [0, *sorted(cuts), len(values)]
    spans = [slice(a, b) for a, b in pairwise(edges) if a < b]
    pieces = [nn.Parameter(values[span, None].clone()) for span in spans]
    optimizer = build_optimizer([(str(i), p) for i, p in enumerate(pieces)], OptimConfig())
    for step, gradient in enumerate(gradients):
        for piece, span in zip(pieces, spans, strict=True):
            piece.grad = gradient[span, None].clone()
        set_learning_rate(optimizer, 1e-2 / (step + 1))
        optimizer.step()
    return torch.cat([p.detach()[:, 0] for p in pieces])


@pytest.mark.parametrize("cuts", [[1], [500], [3, 17, 800]])
def test_pieces_of_a_parameter_are_updated_as_the_whole(cuts: list[int]) -> None:
    values, *gradients = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    whole, again = updated(values, gradients, []), updated(values, gradients, [])
    assert torch.equal(whole, again)
    # Not to the bit: a kernel rounds elements in a full vector register otherwise than those left over at the end.
    torch.testing.assert_close(updated(values, gradients, cuts), whole, rtol=1e-6, atol=1e-7)


def test_one_step_by_hand() -> None:
    # Loshchilov & Hutter 2019, algorithm 2: first update, bias-corrected moments are g and g^2, so g / (|g| + eps).
    config = OptimConfig(lr=0.1, weight_decay=0.5, eps=1e-8)
    weight = nn.Parameter(torch.tensor([[2.0, -3.0]]))
    weight.grad = torch.tensor([[0.25, -4.0]])
    build_optimizer([("w", weight)], config).step()
    decay = 1 - 0.1 * 0.5
    assert weight.detach().flatten().tolist() == pytest.approx([2.0 * decay - 0.1, -3.0 * decay + 0.1])
