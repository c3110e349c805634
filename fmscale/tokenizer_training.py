"""A tokenizer from texts: a sample of bounded size, the same for the texts in any order, and SentencePiece's trainer.

Text is cut as `tokenizer.py` cuts it; the reserved ids come first, whoever trains.
"""

from __future__ import annotations

import heapq
import io
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from fmscale import durable
from fmscale.errors import ConfigError, DataError
from fmscale.tokenizer import BOS_ID, CONTROL, EOS_ID, FIRST_BYTE_ID, PAD_ID, SPACE, UNK_ID, Kind, Tokenizer

_LINE_CHARS = 1 << 14
_PIECE_CHARS = 1 << 16


def train(
    texts: Iterable[str],
    out: str | Path,
    vocab_size: int,
    kind: Kind = "bpe",
    *,
    sample_bytes: int = 20_000_000,
    threads: int = 4,
) -> Tokenizer:
    """Train on `texts` and write the model to `out`. The same texts in any order give the same bytes.

    kind: on 9 MB of Python source bpe trained 8,192 pieces in 1.6 s, unigram in 30 s; 3.23 and 3.17 bytes a token.
    sample_bytes: UTF-8 bytes to learn from; of more, the pieces of text with the smallest hashes are taken.
    threads: part of the result (sums are rounded in its order), so a fixed number rather than the machine's.
    Raises ConfigError: a vocabulary too small for the reserved ids and characters, or too large for the texts; a place
    that can hold no file; a sample or a number of threads that is none. DataError: texts without any text.
    """
    import sentencepiece

    check_place(out)  # before hours of reading, not behind them
    for name, value, most, expected in (
        ("sample_bytes", sample_bytes, math.inf, "1 or more, for example 20_000_000"),
        ("threads", threads, 1024, "1 to 1,024, for example 2"),
    ):
        if not 1 <= value <= most:
            raise ConfigError(
                f"{name} of the tokenizer's training is out of range",
                expected=expected,
                found=str(value),
                do="leave it out for the default",
            )
    least = FIRST_BYTE_ID + 256 + 1
    if vocab_size < least:
        raise _impossible(vocab_size, f"at least {least}: {FIRST_BYTE_ID} reserved ids, 256 bytes, and pieces")
    sample = _sample(texts, sample_bytes)
    if not any(map(bytes.strip, sample)):
        raise DataError(
            "the inputs hold no text to learn from",
            expected="text in some record of them that is not held out or dropped",
            found="none",
            do="check the inputs and the field that holds the text; what was dropped is named above",
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=_lines(sample),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            num_threads=threads,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            max_sentence_length=8 * _LINE_CHARS,  # in bytes; longer lines would be skipped in silence
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            pad_piece="<pad>",
            bos_piece="<bos>",
            eos_piece="<eos>",
            unk_piece="<unk>",
            control_symbols=[f"<{name}>" for name in CONTROL],
            minloglevel=4,
        )
    except (RuntimeError, ValueError) as error:
        cause = str(error).splitlines()[-1] if str(error) else type(error).__name__
        if limit := re.search(r"too high.*<= (\d+)", str(error)):
            expected = f"at most {limit[1]} with these {sum(map(len, sample))} bytes of text"
        elif limit := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            expected = f"more than {limit[1]}, for the characters of these texts"
        else:
            expected = f"text that SentencePiece can learn from: {cause[:150]}"
        raise _impossible(vocab_size, expected) from error
    tokenizer = Tokenizer(model.getvalue())
    durable.replace(Path(out), tokenizer.model)
    return tokenizer


def check_place(out: str | Path) -> None:
    """Make the directory of the file `out`. Raises ConfigError where no file can be written there."""
    place = Path(out)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        found = "a directory" if place.is_dir() else ""
        if not found and not os.access(place.parent, os.W_OK):
            found = f"{place.parent}, in which nothing may be written"
    except OSError as error:
        found = error.strerror or str(error)
    if found:
        raise ConfigError(
            "the tokenizer cannot be written there",
            expected="a file to write, for example data/tokenizer.model",
            found=f"{place}: {found}",
            do="correct the output",
        )


def _impossible(vocab_size: int, expected: str) -> ConfigError:
    do = "change the vocabulary size, or give more text"
    return ConfigError("the vocabulary size does not fit", expected=expected, found=f"vocab_size={vocab_size}", do=do)


def _sample(texts: Iterable[str], sample_bytes: int) -> list[bytes]:
    """Pieces of the texts in the order of their hashes, the first of them up to `sample_bytes`."""
    heap: list[tuple[int, bytes]] = []  # the largest hash on top
    total = 0
    for text in texts:
        for at in range(0, len(text), _PIECE_CHARS):
            piece = text[at : at + _PIECE_CHARS].encode("utf-8", "ignore")
            total += len(piece)
            heapq.heappush(heap, (-xxhash.xxh3_128_intdigest(piece), piece))
            while total - len(heap[0][1]) >= sample_bytes:
                total -= len(heapq.heappop(heap)[1])
    return [piece for _, piece in sorted(heap, reverse=True)]


def _lines(sample: Iterable[bytes]) -> Iterator[str]:
    for piece in sample:
        for line in re.split(rf"[\n{SPACE}\0]", piece.decode("utf-8")):
            for at in range(0, len(line), _LINE_CHARS):
                yield line[at : at + _LINE_CHARS]
