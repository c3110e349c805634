"""The decoder against transformers' Llama with the same weights: same logits, same gradients, in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fmscale.config import ModelConfig
from fmscale.model.decoder import Decoder, init_weights

# ours -> theirs, below `layers.N.` where the name has a number there
NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}


def their_name(name: str) -> str:
    if not name.startswith("layers."):
        return NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{NAMES[rest]}"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_logits_and_gradients_are_those_of_transformers_llama(tied: bool, n_kv_heads: int) -> None:
    config = ModelConfig(
        vocab_size=200, d_model=64, n_layers=3, n_kv_heads=n_kv_heads, d_ff=160, rope_theta=500.0, tie_embeddings=tied
    )
    assert_parity(config, positions_BT=None)


def test_so_they_are_within_documents() -> None:
    """transformers takes a row for packed where its positions do not go up by one, and masks by that."""
    config = ModelConfig(vocab_size=200, d_model=64, n_layers=3, d_ff=160, rope_theta=500.0, attention="document")
    lengths = ((20, 1, 1, 26), (7, 41))
    assert_parity(config, torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths]))


def assert_parity(config: ModelConfig, positions_BT: Tensor | None) -> None:
    """Two rows of 48 tokens: logits and gradients of both models with the same weights within 1e-5."""
    transformers = pytest.importorskip("transformers")
    ours = Decoder(config)
    init_weights(ours, config, seed=1)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():  # away from ones, so that a forgotten norm weight shows
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.padded_vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            intermediate_size=config.ff_width,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="eager",
        )
    )
    their_parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            their_parameters.pop(their_name(name)).copy_(parameter)
    assert not their_parameters, "every parameter of theirs has a counterpart of ours"

    tokens_BT = torch.randint(0, config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(0))
    weights_BTV = torch.randn(2, 48, config.vocab_size, generator=torch.Generator().manual_seed(1))

    def real(logits_BTV: Tensor) -> Tensor:
        return logits_BTV[..., : config.vocab_size]

    our_logits, their_logits = (
        real(ours(tokens_BT, positions_BT)),
        real(theirs(tokens_BT, position_ids=positions_BT, use_cache=False).logits),
    )
    torch.testing.assert_close(our_logits, their_logits, rtol=1e-5, atol=1e-5)
    (our_logits * weights_BTV).sum().backward()
    (their_logits * weights_BTV).sum().backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = their_gradients[their_name(name)]
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            parameter.grad, expected, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
