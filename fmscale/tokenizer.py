"""Text to token ids and back, exactly: SentencePiece with a fixed table of reserved ids that no text can produce."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
CONTROL = (
    "mask", "cls", "sep", "fim_prefix", "fim_middle", "fim_suffix", "fim_pad",
    *(f"sentinel_{i}" for i in range(100)), *(f"spare_{i}" for i in range(64)),
)  # fmt: skip
SPECIAL: dict[str, int] = {name: i for i, name in enumerate(("pad", "bos", "eos", "unk", *CONTROL))}
"""Reserved ids by name, the same for every tokenizer, whoever trains it."""
Kind = Literal["unigram", "bpe"]


class Tokenizer:
    """Law: decode(encode(text)) == text for every text (every `str` without lone surrogates)."""

    pad_id, bos_id, eos_id, unk_id = PAD_ID, BOS_ID, EOS_ID, UNK_ID

    def __init__(self, model: bytes) -> None:
        self.model = model
        """The bytes of tokenizer.model."""
        self.fingerprint = ""
        """sha256 of `model`, in hex."""
        self.vocab_size = 0

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Raises DataError: no such file, no SentencePiece model, or one whose reserved ids are not SPECIAL."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; never a reserved one. Raises DataError for a lone surrogate, which is no text."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.unsignedinteger]]:
        """Like `encode` for each text, much faster: arrays of uint16 (vocabulary up to 65536) or uint32."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text; reserved ids stand for nothing. Raises DataError for an id outside the vocabulary."""
        raise NotImplementedError

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """Bytes of text that each id stands for [vocab_size]; 0 for reserved ids."""
        raise NotImplementedError


def train(
    texts: Iterable[str],
    out: str | Path,
    vocab_size: int,
    kind: Kind = "unigram",
    *,
    sample_bytes: int = 20_000_000,
    threads: int = 4,
) -> Tokenizer:
    """Train on `texts` and write the model to `out`. Deterministic: the model depends on the set of texts, not on their order.

    sample_bytes: UTF-8 bytes of text to learn from; of more, the texts with the smallest hashes are taken.
    threads: part of the result (sums are rounded in its order), so a fixed number rather than the machine's.
    Raises ConfigError: a vocabulary too small for the reserved ids, or too large for the texts.
    """
    raise NotImplementedError
