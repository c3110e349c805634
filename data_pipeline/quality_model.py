"""A linear classifier of documents over hashed words and pairs of words, and its file.

    score = 1 / (1 + exp(-z)),  z = bias + mean over the document's words and word pairs of weight[bucket]

That is fastText's classifier (Joulin et al. 2016) without its hidden layer; a mean, so that length alone says nothing.
A word is what de-duplication takes for one (ngrams.py), its bucket the upper bits of its 64-bit hash: two of the
2^20 weights are one for some words, which costs little (Weinberger et al. 2009). The file is safetensors with the
training's figures: no pickle, and a hash that is checked. quality_training.py makes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data_pipeline.ngrams import ngram_hashes
from fmscale import durable
from fmscale.errors import DataError

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
FORMAT = "fmscale.quality_model.1"
MIN_BITS, MAX_BITS = 10, 24
_PIECE = 1 << 20
"""Characters of a text whose words are looked at together; no pair of words goes across."""


@dataclass(frozen=True)
class QualityModel:
    weights: npt.NDArray[np.float32]
    """[2^bits]"""
    bias: float
    report: dict[str, Any]
    """What the training found on documents that it held out."""

    @property
    def bits(self) -> int:
        return len(self.weights).bit_length() - 1

    def logits(self, texts: Sequence[str]) -> F64:
        """[texts]: z. The same for a text whatever stands beside it: sums run in the text's order."""
        sums, counts = np.zeros(len(texts)), np.zeros(len(texts))
        for owners, *ngrams in features(texts, self.bits):
            # By piece first: what else is looked at together with it must not change the order of additions.
            sum_of = sum(np.bincount(piece, self.weights[buckets], len(owners)) for buckets, piece in ngrams)
            np.add.at(sums, owners, sum_of)
            np.add.at(counts, owners, sum(np.bincount(piece, minlength=len(owners)) for _, piece in ngrams))
        return self.bias + sums / np.maximum(counts, 1)

    def scores(self, texts: Sequence[str]) -> list[float]:
        """[texts], 0 to 1, to six digits: what the last bits of exp are on some machine decides nothing."""
        return [round(probability(z), 6) for z in self.logits(texts).tolist()]

    def save(self, path: Path) -> None:
        header = {"format": FORMAT, "bias": self.bias.hex(), "hash": self._hash(), "report": json.dumps(self.report)}
        durable.replace(path, save({"weights": self.weights}, header))

    def _hash(self) -> str:
        return xxhash.xxh3_128_hexdigest(self.weights.astype("<f4").tobytes() + self.bias.hex().encode())

    @staticmethod
    def load(path: str | Path) -> QualityModel:
        """Raises DataError: no such model, or one whose hash is not that of its weights."""
        try:
            with safe_open(path, "numpy") as file:
                header = file.metadata() or {}
                weights = file.get_tensor("weights")
            if header.get("format") != FORMAT:
                raise ValueError(f"format {header.get('format')}")
            model = QualityModel(weights, float.fromhex(header["bias"]), json.loads(header["report"]))
            if header["hash"] != model._hash():
                raise ValueError("its hash is not that of its weights")
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            raise DataError(
                "the file is no quality model, or a damaged one",
                expected=f"{FORMAT}, written by `fmscale data classifier train`",
                found=f"{path}: {' '.join(str(error).split())}",
                do="copy it again, or train it again",
            ) from error
        return model


def probability(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


Ngrams = tuple[I64, I64]
"""(bucket [n], the piece it is in [n])"""


def features(texts: Sequence[str], bits: int) -> Iterator[tuple[I64, Ngrams, Ngrams]]:
    """(the text of each piece, words, word pairs) of some pieces of the texts, all in the texts' order."""
    cut = [(place, piece) for place, text in enumerate(texts) for piece in _pieces(text)]
    shift = np.uint64(64 - bits)
    begin = 0
    while begin < len(cut):
        end, held = begin, 0
        while end < len(cut) and (end == begin or held + len(cut[end][1]) <= _PIECE):
            held += len(cut[end][1])
            end += 1
        (words, word_piece), (pairs, pair_piece) = (
            ngram_hashes([piece for _, piece in cut[begin:end]], n) for n in (1, 2)
        )
        yield (
            np.array([place for place, _ in cut[begin:end]], np.int64),
            ((words >> shift).astype(np.int64), word_piece),
            ((pairs >> shift).astype(np.int64), pair_piece),
        )
        begin = end


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that depend on nothing but it, cut at white space where there is some."""
    begin = 0
    while len(text) - begin > _PIECE:
        end = max(text.rfind(" ", begin, begin + _PIECE), text.rfind("\n", begin, begin + _PIECE)) + 1
        end = end if end > begin else begin + _PIECE
        yield text[begin:end]
        begin = end
    yield text[begin:]
