"""Text to token ids and back, exactly: SentencePiece, word by word, with reserved ids that no text can produce.

Text is cut where no piece can lie across: before spaces, around newlines, between ASCII letters and ASCII signs. Words
are looked up in a memo and only new ones reach SentencePiece, so that ids depend on the word alone (SentencePiece adds
up float32 scores along its input, and ties fall differently in long texts) and known words cost a dictionary look-up.

SentencePiece writes a space as U+2581; a U+2581 of the text is spelled by its three bytes instead.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fmscale.errors import DataError

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
CONTROL = (
    "mask", "cls", "sep", "fim_prefix", "fim_middle", "fim_suffix", "fim_pad",
    *(f"sentinel_{i}" for i in range(100)), *(f"spare_{i}" for i in range(64)),
)  # fmt: skip
SPECIAL: dict[str, int] = {name: i for i, name in enumerate(("pad", "bos", "eos", "unk", *CONTROL))}
"""Reserved ids by name, the same for every tokenizer, whoever trains it. Then the 256 bytes, then learned pieces."""
FIRST_BYTE_ID = len(SPECIAL)
Kind = Literal["unigram", "bpe"]
MARK = b'{"fmscale-tokenizer":'
"""How the file of a foreign tokenizer begins."""

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
_WORD = re.compile(rf" *(?:[A-Za-z]++(?![^\0-\x7f])|[!-@\[-`{{-~]++(?![^\0-\x7f])|[^\n {SPACE}]+)|\n| +|{SPACE}")
_BREAK = re.compile(r"\n|(?<! ) ")
"""Where a word of _WORD has ended, whatever it is: after a line, before spaces."""
_AT_ONCE = 1 << 20
"""Characters whose words are held at once, at 60 bytes each."""
_MEMO_WORDS = 1 << 18
_MEMO_CHARS = 64
"""Longer words are rarely seen again (text without spaces, base64): not kept, so that the memo stays below 100 MB."""
PROBE = "  a\u00a0\ufb01\u3000\t\r\n \u2581 \u00e9e\u0301 (Tide)<mask> "
"""A text of all that tokenizers lose: white space of every kind, composed characters, what looks like a token."""


class Tokenizer:
    """Law: decode(encode(text)) == text for every text (every `str` without lone surrogates).

    Second law: encode(a + b) == encode(a) + encode(b) if a ends in a newline. Safe for several threads.
    """

    pad_id: int = PAD_ID
    bos_id: int = BOS_ID
    eos_id: int = EOS_ID
    unk_id: int = UNK_ID

    def __init__(self, model: bytes) -> None:
        """model: the bytes of tokenizer.model. Raises DataError as `load` does."""
        self._sp = _processor(model)
        self.model = model
        self.fingerprint = fingerprint_of(model)
        self.vocab_size: int = self._sp.GetPieceSize()
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 65536 else np.uint32)
        self._memo = _Memo(self._sp, self.dtype)
        if (back := self.decode(self.encode(PROBE))) != PROBE:
            raise _unfit("a model that keeps text as it is (no normalisation, no dummy prefix)", ascii(back)[:150])

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Of either kind, ours or a foreign one that was brought in (foreign_tokenizer.py).

        Raises DataError: no such file, no SentencePiece model, or one whose reserved ids are not SPECIAL.
        """
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise DataError(
                "no tokenizer here",
                expected=f"{path}, written by `fmscale tokenizer train` or beside a corpus",
                found=error.strerror or str(error),
                do="train one, or correct the path",
            ) from error
        try:
            if model.startswith(MARK):
                from fmscale.foreign_tokenizer import ForeignTokenizer

                return ForeignTokenizer(model)
            return Tokenizer(model)
        except DataError as error:
            error.add_note(f"  file: {path}")
            raise

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; never a reserved one. Raises DataError for a lone surrogate, which is no text."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.unsignedinteger]]:
        """Like `encode` for each text: read-only arrays of uint16 (vocabulary up to 65536) or uint32."""
        look_up = self._memo.__getitem__
        return [
            np.frombuffer(b"".join(b"".join(map(look_up, _WORD.findall(lot))) for lot in _lots(text)), self.dtype)
            for text in texts
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; reserved ids stand for nothing. Raises DataError for an id outside the vocabulary."""
        kept = [i for i in map(int, ids) if not 0 <= i < FIRST_BYTE_ID]
        if bad := [i for i in kept if not 0 <= i < self.vocab_size]:
            raise DataError(
                "a token id is outside the vocabulary",
                expected=f"0 to {self.vocab_size - 1}",
                found=str(bad[0]),
                do="use the tokenizer that the tokens were made with",
            )
        text: str = self._sp.Decode(kept)
        return text

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """UTF-8 bytes of text that each id stands for [vocab_size]; 0 for reserved ids.

        Summed over encode(text), it gives len(text.encode()): the denominator of bits per byte.
        """
        sizes = np.ones(self.vocab_size, np.int32)  # one for each byte piece
        sizes[:FIRST_BYTE_ID] = 0
        for i in range(FIRST_BYTE_ID + 256, self.vocab_size):
            sizes[i] = len(self._sp.IdToPiece(i).replace(SPACE, " ").encode())
        return sizes


def _lots(text: str) -> Iterator[str]:
    """`text` in lots of about _AT_ONCE characters; the words of all lots are those of the text."""
    begin = 0
    while len(text) - begin > _AT_ONCE and (found := _BREAK.search(text, begin + _AT_ONCE)):
        end = found.end() if found[0] == "\n" else found.start()
        yield text[begin:end]
        begin = end
    yield text[begin:] if begin else text


def fingerprint_of(model: bytes) -> str:
    """sha256 of a tokenizer's file: what corpora and runs know it by."""
    return hashlib.sha256(model).hexdigest()


class _Memo(dict[str, bytes]):
    """Ids of words, as the bytes of an array; what is missing is asked of SentencePiece."""

    def __init__(self, sp: Any, dtype: np.dtype[Any]) -> None:
        super().__init__()
        self._sp = sp
        self._dtype = dtype

    def __missing__(self, word: str) -> bytes:
        if word == SPACE:
            ids = np.frombuffer(word.encode(), np.uint8).astype(np.int32) + FIRST_BYTE_ID
        else:
            ids = self._sentencepiece(word)
        found = ids.astype(self._dtype).tobytes()
        if len(word) <= _MEMO_CHARS:
            if len(self) >= _MEMO_WORDS:
                self.clear()  # frequent words are back at once
            self[word] = found
        return found

    def _sentencepiece(self, word: str) -> npt.NDArray[np.int32]:
        try:
            ids: npt.NDArray[np.int32] = self._sp.Encode(word, return_type="numpy")
        except RuntimeError as error:  # pybind11 cannot convert what has no UTF-8 form
            bad = next((c for c in word if "\ud800" <= c <= "\udfff"), None)
            if bad is None:
                raise
            raise DataError(
                "a text holds half a surrogate pair, which is no character",
                expected="text that has a UTF-8 form",
                found=f"U+{ord(bad):04X}",
                do="drop the document, or repair how it was decoded",
            ) from error
        return ids


def _processor(model: bytes) -> Any:
    """A SentencePiece processor that is fit for the two laws. Raises DataError."""
    import sentencepiece

    try:
        sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _unfit("a SentencePiece model", str(error).splitlines()[0][:200] or type(error).__name__) from error
    pieces = [f"<{name}>" for name in SPECIAL] + [f"<0x{byte:02X}>" for byte in range(256)]
    found = [sp.IdToPiece(i) for i in range(min(len(pieces), sp.GetPieceSize()))]
    if found != pieces:
        at = next((i for i, pair in enumerate(zip(pieces, found, strict=False)) if pair[0] != pair[1]), len(found))
        have = found[at] if at < len(found) else "the end of the vocabulary"
        raise _unfit(f"the reserved pieces, then bytes: id {at} is {pieces[at]}", have)
    wrong = [i for i in range(FIRST_BYTE_ID) if i != UNK_ID and not sp.IsControl(i)]
    if wrong:
        raise _unfit(f"{pieces[wrong[0]]} as a control symbol", "a piece that text can produce")
    return sp


def _unfit(expected: str, found: str) -> DataError:
    do = "train a tokenizer with `fmscale tokenizer train`, or bring this one in with `fmscale tokenizer import`"
    return DataError("this is no tokenizer of fmscale", expected=expected, found=found, do=do)
