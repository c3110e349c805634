"""Training documents out that give evaluation sets away: `- decontaminate: {against: [eval/gsm8k.jsonl]}`.

A document that shares a run of `ngram` words with an item of a set goes (Brown et al. 2020, appendix C: 13 words;
case, punctuation and white space ignored). With `min_share` one shared run is not enough: the document must hold that
share of the n-grams of one item (Chowdhery et al. 2022, section 8: 0.7 of an item's 8-grams), so that a common phrase
or a quoted source does not cost it. Items of fewer words than `ngram` cannot be found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_pipeline.document import Document, drop
from data_pipeline.evaluation_sets import EvaluationSets, load
from data_pipeline.ngrams import I64, ngrams
from data_pipeline.ranges import MAX_NGRAM, TEXTS, in_range
from data_pipeline.rule import batches
from data_pipeline.step_files import once_per_file, reads_files
from fmscale.errors import ConfigError

_load = once_per_file(load)


@reads_files("against")
@in_range(fields=TEXTS)
def decontaminate(
    documents: Iterable[Document],
    *,
    against: str | Sequence[str],
    fields: Sequence[str] = (),
    ngram: int = 13,
    min_share: float = 0.0,
) -> Iterator[Document]:
    """Drops `decontaminate/overlap` (found: the file name of the set).

    against: JSONL or text files (.gz, .zst), their items as evaluation_sets.py says.
    fields: of JSONL records that hold text to be looked for; none for all strings in a record.
    Raises ConfigError: no set, one that cannot be read as such, a parameter out of range.
    """
    paths = [against] if isinstance(against, str) else list(against)
    _check(paths, ngram, min_share)
    sets: EvaluationSets = _load(paths, tuple(fields), ngram)
    for batch in batches(documents):
        held: dict[int, list[I64]] = {}  # of few documents; the n-grams of a long one come a slice at a time
        for some in ngrams([document.text for document in batch], ngram):
            at, members = sets.ngrams.find(some.hashes)
            owners, begins = np.unique(some.owners()[at], return_index=True)
            for owner, part in zip(owners.tolist(), np.split(members, begins)[1:], strict=True):
                held.setdefault(owner, []).append(part)
        for place, document in enumerate(batch):
            share, item = sets.share(np.concatenate(held[place])) if place in held else (-1.0, 0)
            found = sets.names[sets.item_set[item]]
            yield drop(document, "decontaminate/overlap", found) if share >= min_share else document


def _check(paths: Sequence[str], ngram: int, min_share: float) -> None:
    for wrong, expected, found in (
        (not any(paths), "against: a list of files", "none"),
        (not 1 <= ngram <= MAX_NGRAM, f"ngram: 1 to {MAX_NGRAM}; 13 and 8 are usual", str(ngram)),
        (not 0 <= min_share <= 1, "min_share: 0 to 1; 0 means that one shared run is enough", str(min_share)),
    ):
        if wrong:
            raise ConfigError(
                "step decontaminate cannot work so", expected=expected, found=found, do="correct the recipe"
            )
