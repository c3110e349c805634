"""Training of a quality model: documents to be like and documents to be unlike -> weights, and how far to trust them.

Logistic regression on hashed n-grams (quality_model.py) by stochastic gradients, each weight with a rate of its own
(AdaGrad; Duchi, Hazan, Singer 2011). A tenth of the documents, by hash of the text, is held out and only measured.
The sample of each side, the held-out share and the order of training are functions of the texts and the seed: files may
come in any order. In memory: 4 bytes for every word and word pair of the sample, about 1.5 times its size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.inputs import pin
from data_pipeline.pipeline import Recipe
from data_pipeline.progress import follow
from data_pipeline.quality_model import F64, I64, MAX_BITS, MIN_BITS, QualityModel, features
from data_pipeline.read import Fields, check_bad_share, read_piece
from fmscale.corpus.permutation import derive_key, permute
from fmscale.errors import ConfigError, DataError

LEAST_DOCUMENTS = 200
"""Of each side: a tenth is held out, and fewer than 20 tell nothing."""
MOST_UNBALANCED = 10
BATCH = 64
"""Documents of a step of training."""
_HELDOUT = 0.1
_FIRST_SQUARE = 1e-8
"""What AdaGrad's sums of squares begin with: a weight seen a few times in long documents stays small."""


def train(
    positive: Iterable[str],
    negative: Iterable[str],
    *,
    bits: int = 20,
    epochs: int = 5,
    rate: float = 10.0,
    seed: int = 0,
    sample_bytes: int = 200_000_000,
) -> QualityModel:
    """The model, whose scores are near 1 for texts like `positive`; `model.report` has its figures.

    sample_bytes: of text that is learned from, of each side. Equal texts count once; those on both sides not at all.
    Raises DataError: too few documents on a side, or more than ten times those of the other; ConfigError: a parameter
    out of range.
    """
    for name, value, least, most in (("bits", bits, MIN_BITS, MAX_BITS), ("epochs", epochs, 1, 1000)):
        if not least <= value <= most:
            raise ConfigError(
                f"{name} is out of range", expected=f"{least} to {most}", found=str(value), do=f"set {name} in it"
            )
    sides = [_sample(texts, sample_bytes) for texts in (positive, negative)]
    both = sides[0].keys() & sides[1].keys()
    samples = [{key: text for key, text in side.items() if key not in both} for side in sides]
    _check([len(sample) for sample in samples], len(both))
    rows = sorted(
        (key, label, text) for label, sample in ((1, samples[0]), (0, samples[1])) for key, text in sample.items()
    )
    labels = np.array([label for _, label, _ in rows], np.float64)
    heldout = np.array([_is_heldout(key) for key, _, _ in rows])
    documents = Buckets([text for _, _, text in rows], bits)
    model = _fit(documents, labels, np.flatnonzero(~heldout), bits=bits, epochs=epochs, rate=rate, seed=seed)
    held = np.flatnonzero(heldout)
    logits = np.array([model.bias + model.weights[documents[row]].mean(dtype=np.float64) for row in held.tolist()])
    settings = {"bits": bits, "epochs": epochs, "rate": rate, "seed": seed, "on_both_sides": len(both)}
    return QualityModel(model.weights, model.bias, {**settings, **report(labels[~heldout], labels[held], logits)})


def texts_of(inputs: Sequence[str], text_field: str) -> Iterator[str]:
    """The texts of JSONL and plain text files. Raises DataError like `fmscale data prepare`."""
    pinned, dropped, records = pin(inputs), Counter[str](), 0
    pieces = [piece for task in pinned.tasks for piece in task]
    for piece, _ in zip(pieces, follow("read", (p.stop - p.start for p in pieces), pinned.bytes), strict=True):
        for document in read_piece(pinned.files[piece.file], piece, Fields(text_field), Recipe.max_bad_run):
            records += 1
            dropped[document.dropped] += 1
            if not document.dropped:
                yield document.text
    check_bad_share(dropped, records, Recipe.max_bad_share, Recipe.max_bad_run)


class Buckets:
    """The n-grams of documents: bucket numbers, one document after another. A document without words has bucket 0."""

    def __init__(self, texts: Sequence[str], bits: int) -> None:
        lists: list[npt.NDArray[np.uint32]] = []
        for begin in range(0, len(texts), 256):
            some = texts[begin : begin + 256]
            found: list[list[npt.NDArray[np.uint32]]] = [[] for _ in some]
            for owners, *ngrams in features(some, bits):
                for buckets, piece in ngrams:
                    ends = np.searchsorted(piece, np.arange(len(owners)), side="right")
                    for owner, part in zip(
                        owners.tolist(), np.split(buckets.astype(np.uint32), ends[:-1]), strict=True
                    ):
                        found[owner].append(part)
            lists += [np.concatenate(parts) if sum(map(len, parts)) else np.zeros(1, np.uint32) for parts in found]
        self._lists = lists

    def __getitem__(self, row: int) -> npt.NDArray[np.uint32]:
        return self._lists[row]


def _sample(texts: Iterable[str], most_bytes: int) -> dict[bytes, str]:
    """By hash, the texts with the least hashes, as many as fit: the same ones in whatever order they come."""
    kept: dict[bytes, str] = {}
    held, bound = 0, b"\xff" * 17
    for text in texts:
        raw = text.encode()
        key = xxhash.xxh3_128_digest(raw)
        if key >= bound or key in kept:
            continue
        kept[key] = text
        held += len(raw)
        if held > 2 * most_bytes:
            kept, held, bound = _least(kept, most_bytes)
    return _least(kept, most_bytes)[0]


def _least(kept: dict[bytes, str], most_bytes: int) -> tuple[dict[bytes, str], int, bytes]:
    """(those with the least hashes that fit, their bytes, the hash from which on none fits)."""
    least: dict[bytes, str] = {}
    held = 0
    for key in sorted(kept):
        size = len(kept[key].encode())
        if least and held + size > most_bytes:
            return least, held, key
        least[key] = kept[key]
        held += size
    return least, held, b"\xff" * 17


def _is_heldout(key: bytes) -> bool:
    return int.from_bytes(key[8:]) < math.ldexp(_HELDOUT, 64)


def _check(counts: Sequence[int], both: int) -> None:
    found = f"{counts[0]:,} positive and {counts[1]:,} negative documents, each text counted once"
    found += f"; {both:,} on both sides" if both else ""
    if min(counts) < LEAST_DOCUMENTS:
        raise DataError(
            "too few documents to train a classifier on",
            expected=f"at least {LEAST_DOCUMENTS} on each side, some thousands to be good",
            found=found,
            do="give more files; a long text can be cut into documents of a page",
        )
    if max(counts) > MOST_UNBALANCED * min(counts):
        raise DataError(
            "the two sides are too unequal to train a classifier on",
            expected=f"at most {MOST_UNBALANCED} times as many documents on one side",
            found=found,
            do="give fewer files of the larger side (a sample of them teaches as much), or more of the smaller",
        )


def report(trained: F64, labels: F64, logits: F64) -> dict[str, Any]:
    """Figures on held-out documents. trained, labels: 1 or 0 of those trained on and of those held out.

    auc: chance that a positive document scores above a negative one (ties count half).
    calibration_error: mean distance between score and share of positives over ten bins of scores (Guo et al. 2017).
    kept: threshold -> share of positive and of negative documents that score as high.
    """
    scores = 1 / (1 + np.exp(-logits))
    is_positive = labels == 1
    bins = np.minimum((scores * 10).astype(np.int64), 9)
    sizes = np.maximum(np.bincount(bins, minlength=10), 1)
    gaps = np.abs(np.bincount(bins, scores, 10) - np.bincount(bins, labels, 10)) / sizes
    _, rank_of, count = np.unique(logits, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[rank_of]
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    auc = (ranks[is_positive].sum() - positives * (positives + 1) / 2) / max(positives * negatives, 1)
    return {
        "trained": {"positive": int(trained.sum()), "negative": int((1 - trained).sum())},
        "heldout": {"positive": positives, "negative": negatives},
        "accuracy": round(float(((scores >= 0.5) == is_positive).mean()), 4),
        "auc": round(float(auc), 4),
        "log_loss": round(float(np.logaddexp(0, np.where(is_positive, -logits, logits)).mean()), 4),
        "calibration_error": round(float((gaps * np.bincount(bins, minlength=10)).sum() / len(scores)), 4),
        "kept": {
            f"{t / 10:.1f}": [
                round(int((scores[side] >= t / 10).sum()) / max(int(side.sum()), 1), 4)
                for side in (is_positive, ~is_positive)
            ]
            for t in range(1, 10)
        },
    }


def _fit(
    documents: Any, labels: F64, rows: I64, *, bits: int, epochs: int, rate: float, seed: int, batch: int = BATCH
) -> QualityModel:
    """Weights and bias after `epochs` passes over `rows`, each in an order of its own.

    documents[row] -> its buckets. A step's gradient: mean over its documents of (p - label) * share of the bucket.
    """
    weights, squares = np.zeros(1 << bits), np.full(1 << bits, _FIRST_SQUARE)
    bias, bias_square = 0.0, 1.0
    for epoch in range(epochs):
        order = rows[
            permute(np.arange(len(rows)), len(rows), derive_key("quality model", seed, epoch)).astype(np.int64)
        ]
        for begin in range(0, len(order), batch):
            some = order[begin : begin + batch]
            lists = [documents[row] for row in some.tolist()]
            lengths = np.array([len(one) for one in lists])
            buckets, place = np.unique(np.concatenate(lists), return_inverse=True)
            shares, owners = np.repeat(1 / lengths, lengths), np.repeat(np.arange(len(some)), lengths)
            logits = bias + np.bincount(owners, weights[buckets][place] * shares, len(some))
            wrong = (1 / (1 + np.exp(-logits)) - labels[some]) / len(some)
            gradient = np.bincount(place, wrong[owners] * shares, len(buckets))
            squares[buckets] += gradient**2
            weights[buckets] -= rate * gradient / np.sqrt(squares[buckets])
            bias_square += wrong.sum() ** 2
            bias -= rate * wrong.sum() / math.sqrt(bias_square)
    return QualityModel(weights.astype(np.float32), float(bias), {})
