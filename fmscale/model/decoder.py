"""A Llama-style decoder: tokens in, logits out, on one device, with no knowledge of ranks or precision.

    model = Decoder(config)              # parameters uninitialised
    init_weights(model, config, seed)    # each parameter drawn from (seed, its name) alone
    logits_BTV = model(tokens_BT)

A parameter's **canonical name** is its name in this module tree (`layers.3.mlp.gate.weight`). Checkpoints, engines and
the draw of initial weights know parameters by it and by nothing else. Tied, the table is `embedding.weight` alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fmscale.config import ModelConfig
from fmscale.model.layers import Block, Embedding, Head, RMSNorm, rotation
from fmscale.model.mask import attention_mask


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        assert config.vocab_size > 0, "vocab_size is filled in from the corpora before a model is built"
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = Head(config)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Logits_BTV over the padded vocabulary (padding: `layers.logits`).

        positions_BT: None is 0, 1, ... T-1. With `attention=document` a new document begins at each 0.
        """
        if positions_BT is None:
            positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
        cos_sin = rotation(positions_BT, self.config.head_dim, self.config.rope_theta)
        mask = attention_mask(positions_BT.expand_as(tokens_BT), self.config.attention)
        x_BTD = self.embedding(tokens_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_sin, mask)
        logits_BTV: Tensor = self.head(self.norm(x_BTD))
        return logits_BTV


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every parameter, in the order of the module tree; allocates nothing."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Decoder(config).named_parameters()}


def init_weights(model: Decoder, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of `model` with `initial_values`."""
    init_parameters(model.named_parameters(), config, seed)


@torch.no_grad()
def init_parameters(named: Iterable[tuple[str, nn.Parameter]], config: ModelConfig, seed: int) -> None:
    """Fill parameters, given with their canonical names, with `initial_values`."""
    for name, parameter in named:
        parameter.copy_(initial_values(name, tuple(parameter.shape), config, seed))


def initial_values(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """The float32 CPU tensor that the parameter `name` starts as; a function of (seed, name, shape) and the config.

    What                          Distribution                         Source
    norms                         1
    attention.output, mlp.down    N(0, init_std / sqrt(2 n_layers))    GPT-2 (Radford et al. 2019, 2.3), Megatron-LM
    all other matrices            N(0, init_std)                       GPT-2, with 0.02

    The scaled ones write into the residual stream, twice a layer, so its variance does not grow with depth.
    """
    if len(shape) == 1:
        return torch.ones(shape)
    writes_residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
    std = config.init_std / (math.sqrt(2 * config.n_layers) if writes_residual else 1.0)
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator)
