"""The decoder as a list of layers, for engines that hand each rank a part of it.

    [PipelineEmbedding, PipelineBlock x n_layers, PipelineNorm, Head]

What passes between layers is `(x_BTD, positions_BT)`; the norm drops the positions, the head returns logits. Their
parameters are the decoder's, and `canonical_name` says which.

Tied embeddings: head and embedding here share one parameter. Where they live on different ranks, each holds a copy of
`embedding.weight`, starts from the same draw, and the engine adds their gradients up (DeepSpeed: `TiedLayerSpec` on
the embedding, with `tied_logits` as the head's forward).
"""

from __future__ import annotations

from torch import Tensor, nn

from fmscale.config import ModelConfig
from fmscale.model.layers import Block, Embedding, Head, RMSNorm, logits, rotation
from fmscale.model.mask import attention_mask

Hidden = tuple[Tensor, Tensor]
"""x_BTD and positions_BT."""


class PipelineEmbedding(Embedding):
    def forward(self, tokens_and_positions: Hidden) -> Hidden:  # type: ignore[override]
        tokens_BT, positions_BT = tokens_and_positions
        return super().forward(tokens_BT), positions_BT


class PipelineBlock(Block):
    """A block that makes rotation and mask from positions itself: both cost less than sending them between ranks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.rope_theta = config.rope_theta
        self.attends_to = config.attention

    def forward(self, hidden: Hidden) -> Hidden:  # type: ignore[override]
        x_BTD, positions_BT = hidden
        cos_sin = rotation(positions_BT, self.attention.head_dim, self.rope_theta)
        mask = attention_mask(positions_BT, self.attends_to)
        return super().forward(x_BTD, cos_sin, mask), positions_BT


class PipelineNorm(RMSNorm):
    def forward(self, hidden: Hidden) -> Tensor:  # type: ignore[override]
        return super().forward(hidden[0])


def pipeline_layers(config: ModelConfig) -> list[nn.Module]:
    """The layers above, uninitialised; calling them in turn on (tokens_BT, positions_BT) is `Decoder.forward`."""
    embedding, head = PipelineEmbedding(config), Head(config)
    if config.tie_embeddings:
        head.weight = embedding.weight
    blocks = [PipelineBlock(config) for _ in range(config.n_layers)]
    return [embedding, *blocks, PipelineNorm(config.d_model, config.norm_eps), head]


def tied_logits(embedding: Embedding, x_BTD: Tensor, vocab_size: int) -> Tensor:
    """What `Head` computes, with the embedding's table."""
    return logits(x_BTD, embedding.weight, vocab_size)


def canonical_name(config: ModelConfig, layer_index: int, name: str) -> str:
    """The decoder's name of parameter `name` of `pipeline_layers(config)[layer_index]`."""
    if layer_index == 0 or (layer_index == config.n_layers + 2 and config.tie_embeddings):
        return f"embedding.{name}"
    if layer_index == config.n_layers + 1:
        return f"norm.{name}"
    if layer_index == config.n_layers + 2:
        return f"head.{name}"
    assert 1 <= layer_index <= config.n_layers, f"a decoder has no pipeline layer {layer_index}"
    return f"layers.{layer_index - 1}.{name}"
