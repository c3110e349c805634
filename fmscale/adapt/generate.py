"""Text from a checkpoint, on one device: the model alone, no engine, no ranks.

model = load_model(run_dir, config)
text = sample(model, tokenizer, "Once upon", tokens=60, seed=0)
"""

from __future__ import annotations

from pathlib import Path

import torch

from fmscale.config import Config
from fmscale.errors import CheckpointError
from fmscale.model.decoder import Decoder
from fmscale.tokenizer import Tokenizer
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_reader import CheckpointReader


def load_model(run_dir: Path, config: Config) -> Decoder:
    """The fp32 weights of the run's newest valid checkpoint. Raises CheckpointError if there is none."""
    store = CheckpointStore(run_dir / "checkpoints")
    commit = store.newest_valid()
    if commit is None:
        raise no_checkpoint(store)
    model = Decoder(config.model)
    fill(model, store.open(commit))
    return model.eval()


@torch.no_grad()
def fill(model: Decoder, reader: CheckpointReader) -> None:
    """Give `model` the fp32 weights of a checkpoint. Raises CheckpointError where they do not hold or fit."""
    for name, parameter in model.named_parameters():
        parameter.copy_(reader.read(name, "master", 0, parameter.numel()).view_as(parameter))


def no_checkpoint(store: CheckpointStore) -> CheckpointError:
    """The error for a run that has trained nothing yet."""
    return CheckpointError(
        "this run has no checkpoint yet",
        expected=f"a committed checkpoint in {store.root}",
        found="none",
        do="train it first: fmscale train",
    )


@torch.no_grad()
def sample(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    tokens: int,
    seed: int,
    temperature: float = 0.7,
    top_k: int = 40,
) -> str:
    """`prompt` and up to `tokens` more tokens, drawn from the `top_k` likeliest at `temperature`; ends at EOS.

    Each token costs a forward over all before it: right for a look at a model, not for serving one.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt)
    begun = not ids or model.config.attention == "causal"
    if begun:  # rows follow the EOS of the document before; where attention is bounded by documents, nothing does
        ids = [tokenizer.eos_id, *ids]
    for _ in range(tokens):
        logits_V = model(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size].float()
        best = logits_V.topk(min(top_k, tokenizer.vocab_size))
        choice = torch.multinomial(torch.softmax(best.values / temperature, -1), 1, generator=generator)
        token = int(best.indices[choice])
        if token == tokenizer.eos_id:
            break
        ids.append(token)
    return tokenizer.decode(ids[begun:])
