"""What a tokenizer is, and how it does on some text: bytes per token, by source and by language."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xxhash

from data_pipeline.document import Document, through
from data_pipeline.inputs import pin
from data_pipeline.pipeline import Recipe, fields
from data_pipeline.read import read_piece
from data_pipeline.registry import entries, steps_of
from data_pipeline.rule import batches
from fmscale.settings import load_settings
from fmscale.tokenizer import Tokenizer


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """Plain values: size, fingerprint, the ids that training needs, the bytes that tokens stand for."""
    sizes = tokenizer.token_bytes()
    said = sizes[sizes > 0]
    return {
        "kind": type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "decodes_every_text": getattr(tokenizer, "exact", True),
        **{name: getattr(tokenizer, name) for name in ("pad_id", "bos_id", "eos_id", "unk_id")},
        "special_tokens": int((sizes == 0).sum()),
        "bytes_of_a_token": {"mean": round(float(said.mean()), 2), "most": int(said.max())},
    }


def measure(
    tokenizer: Tokenizer, inputs: Sequence[str], recipe_files: Sequence[str], text_field: str, sample_bytes: int
) -> Iterator[dict[str, Any]]:
    """For each source and language of a sample, and for all of it: documents, bytes, tokens, bytes per token.

    A source is the top directory (or the file) below an input; a language what the recipe's steps or the record's field
    `language` say. The sample goes by a hash of the text: about `sample_bytes` of it. Raises as `prepare`.
    """
    if not inputs:
        return
    recipe = load_settings(Recipe, list(recipe_files)) if recipe_files else Recipe(text_field=text_field)
    pinned = pin(inputs)
    share = math.ldexp(min(1.0, sample_bytes / max(pinned.bytes, 1)), 64)

    def documents() -> Iterator[Document]:
        for task in pinned.tasks:
            for piece in task:
                for document in read_piece(pinned.files[piece.file], piece, fields(recipe), recipe.max_bad_run):
                    if document.dropped or xxhash.xxh3_64_intdigest(document.text.encode()) < share:
                        yield document

    seen = np.zeros(tokenizer.vocab_size, bool)
    counts: dict[tuple[str, str], Counter[str]] = {}
    steps = steps_of([entry for entry in entries(recipe.steps) if not entry.is_pass])
    for batch in batches(through(documents(), steps, lambda rejected: None)):
        for document, tokens in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            seen[tokens] = True
            place = document.source.split("/")[0], str(document.meta.get("language", ""))
            found = Counter(documents=1, bytes=len(document.text.encode()), tokens=len(tokens))
            counts.setdefault(place, Counter()).update(found)
    for (source, language), count in sorted(counts.items()):
        yield {"source": source, "language": language, **_rates(count)}
    total = sum(counts.values(), Counter[str]())
    yield {"source": "all", "language": "", **_rates(total), "tokens_used_of_vocabulary": round(float(seen.mean()), 4)}


def _rates(count: Counter[str]) -> dict[str, Any]:
    return {**count, "bytes_per_token": round(count["bytes"] / max(count["tokens"], 1), 3)}
