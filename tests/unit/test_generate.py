"""Text from a run: where a sample begins, and a run that has nothing to give yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fmscale.adapt.generate import load_model, sample
from fmscale.config import Config, ModelConfig
from fmscale.errors import CheckpointError
from fmscale.model.decoder import Decoder, init_weights
from tests.corpora import vocabulary


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"this run has no checkpoint yet(?s:.*)train it first") as caught:
        load_model(tmp_path, Config())
    assert str(tmp_path / "checkpoints") in str(caught.value)


@pytest.mark.parametrize("attention", ["causal", "document"])
@pytest.mark.parametrize("prompt", ["", "some text"])
def test_a_sample_goes_on_from_where_documents_begin_in_training(attention: str, prompt: str) -> None:
    """Behind the EOS of another document, unless attention does not reach that far: then at the first token."""
    tokenizer = vocabulary(460)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=16,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        attention=attention,  # type: ignore[arg-type]
    )
    model = Decoder(config)
    init_weights(model, config, 3)
    before = [] if attention == "document" and prompt else [tokenizer.eos_id]
    ids = [*before, *tokenizer.encode(prompt)]
    likeliest = int(model(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size].argmax())
    expected = [*tokenizer.encode(prompt), *([] if likeliest == tokenizer.eos_id else [likeliest])]
    assert sample(model, tokenizer, prompt, tokens=1, seed=0, top_k=1) == tokenizer.decode(expected)
