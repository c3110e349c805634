"""Tokenizers that others trained: a SentencePiece model or a Hugging Face tokenizer.json, brought in once.

    fmscale tokenizer import meta-llama/tokenizer.json --output data/tokenizer.model

The file that this writes is JSON: the foreign model as it is, the ids that training needs, and whether decoding gives
every text back. Corpora and runs then treat it as any tokenizer.model: its hash is the fingerprint. What ours promise
and these need not: the round trip, ids of a word alone, reserved ids for every later use (docs/data.md).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmscale.errors import ConfigError, DataError
from fmscale.tokenizer import MARK, PROBE, Tokenizer, fingerprint_of

VERSION = 1
EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>", "[SEP]")
"""Looked for, in this order, where nothing says which token ends a document."""
_SPACE = "\u2581"


class ForeignTokenizer(Tokenizer):
    """Text that looks like a special token is encoded as text. Safe for several threads."""

    def __init__(self, model: bytes) -> None:
        """model: the bytes of the file. Raises DataError where it is none of ours, ConfigError where its library is
        not installed."""
        try:
            body = json.loads(model)
            self._kind, inner = body["kind"], base64.b64decode(body["model"], validate=True)
            self.pad_id, self.bos_id, self.eos_id, self.unk_id = body["ids"]
            if body["fmscale-tokenizer"] != VERSION or self._kind not in ("sentencepiece", "huggingface"):
                raise ValueError(f"version {body['fmscale-tokenizer']}, kind {self._kind}")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "this is no tokenizer of fmscale",
                expected=f"a file that `fmscale tokenizer import` wrote, version {VERSION}",
                found=f"{type(error).__name__}: {error}",
                do="bring the tokenizer in again with `fmscale tokenizer import`",
            ) from error
        self.model = model
        self.fingerprint = fingerprint_of(model)
        self.exact: bool = body["exact"]
        """Whether decode(encode(text)) gave back a text of all kinds of white space and scripts."""
        self._inner = _sentencepiece(inner) if self._kind == "sentencepiece" else _huggingface(inner.decode())
        self.vocab_size = self._inner.GetPieceSize() if self._kind == "sentencepiece" else _size(self._inner)
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 65536 else np.uint32)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.unsignedinteger]]:
        try:
            if self._kind == "sentencepiece":
                return [np.array(ids, self.dtype) for ids in self._inner.Encode(list(texts))]
            encoded = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, RuntimeError, TypeError) as error:
            raise DataError(
                "a text cannot be encoded",
                expected="text that has a UTF-8 form",
                found=str(error).splitlines()[0][:200],
                do="drop the document, or repair how it was decoded",
            ) from error
        return [np.array(each.ids, self.dtype) for each in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        kept = [int(i) for i in ids]
        if bad := [i for i in kept if not 0 <= i < self.vocab_size]:
            raise DataError(
                "a token id is outside the vocabulary",
                expected=f"0 to {self.vocab_size - 1}",
                found=str(bad[0]),
                do="use the tokenizer that the tokens were made with",
            )
        text: str = (
            self._inner.Decode(kept)
            if self._kind == "sentencepiece"
            else self._inner.decode(kept, skip_special_tokens=True)
        )
        return text

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """As Tokenizer's; where a tokenizer puts a space before every text, that space counts."""
        sizes = np.zeros(self.vocab_size, np.int32)
        for i, piece in self._pieces.items():
            sizes[i] = len(piece)
        return sizes

    @cached_property
    def _pieces(self) -> dict[int, bytes]:
        """Id -> the bytes of text that it stands for; special tokens stand for none."""
        if self._kind == "sentencepiece":
            pieces = range(self.vocab_size)
            silent = {i for i in pieces if self._inner.IsControl(i) or self._inner.IsUnknown(i)}
            return {i: _spelled(self._inner.IdToPiece(i)) for i in pieces if i not in silent}
        special = {i for i, token in self._inner.get_added_tokens_decoder().items() if token.special}
        added = {i: token.content.encode() for i, token in self._inner.get_added_tokens_decoder().items()}
        decoder = json.loads(self._inner.to_str())["decoder"] or {}
        bytelevel = "ByteLevel" in {decoder.get("type"), *(d["type"] for d in decoder.get("decoders", []))}
        alphabet = _byte_alphabet() if bytelevel else {}
        found: dict[int, bytes] = {}
        for piece, i in self._inner.get_vocab(with_added_tokens=True).items():
            if i in special:
                continue
            if i in added:
                found[i] = added[i]
            elif bytelevel:
                found[i] = bytes(alphabet[c] for c in piece if c in alphabet)
            else:
                found[i] = _spelled(piece)
        return found


def bring(path: str | Path, eos: str | None = None) -> bytes:
    """The file for a foreign tokenizer: a SentencePiece .model, a tokenizer.json, or a directory that holds one.

    eos: the token that ends a document; None looks into tokenizer_config.json beside it, then for a usual name.
    Raises DataError: no such file, neither of the two. ConfigError: no token that ends a document, or a library that
    is not installed; one of ours.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()), path)
    try:
        inner = path.read_bytes()
    except OSError as error:
        raise DataError(
            "no tokenizer here",
            expected="a SentencePiece .model, a Hugging Face tokenizer.json, or a directory that holds one of them",
            found=f"{path}: {error.strerror}",
            do="correct the path; of a model on the Hub, download its tokenizer.json first",
        ) from error
    if _is_ours(inner):
        raise ConfigError(
            "this is a tokenizer of fmscale already",
            expected="one that others trained",
            found=f"{path}, fingerprint {fingerprint_of(inner)}",
            do="use it as it is: tokenizer=FILE; brought in, it would have another fingerprint",
        )
    if inner.lstrip()[:1] == b"{":
        kind, library = "huggingface", _huggingface(inner.decode("utf-8", "replace"))
        find = library.token_to_id
        names = [eos] if eos else [*_configured(path, "eos_token"), *EOS_NAMES]
        ids = [_first(find, _configured(path, f"{name}_token"), -1) for name in ("pad", "bos")]
        ids += [_first(find, names, -1), _first(find, _configured(path, "unk_token"), -1)]
    else:
        kind, library = "sentencepiece", _sentencepiece(inner)
        end = library.PieceToId(eos) if eos else library.eos_id()
        if eos and library.IdToPiece(end) != eos:
            end = -1
        ids = [library.pad_id(), library.bos_id(), end, library.unk_id()]
    if ids[2] < 0:
        raise ConfigError(
            "nothing says which token ends a document",
            expected=f"an eos_token in tokenizer_config.json beside it, or one of {', '.join(EOS_NAMES)}",
            found=f"{path}" + (f" without a token {eos}" if eos else ""),
            do="name the token: `fmscale tokenizer import ... --eos TOKEN`",
        )
    body: dict[str, Any] = {"fmscale-tokenizer": VERSION, "kind": kind, "ids": ids, "exact": False}
    body["model"] = base64.b64encode(inner).decode()
    made = ForeignTokenizer(json.dumps(body, separators=(",", ":")).encode())
    tokens = made.encode(PROBE)
    body["exact"] = made.decode(tokens) == PROBE
    counted = int(made.token_bytes()[tokens].sum())
    if body["exact"] and counted - len(PROBE.encode()) not in (0, 1):  # 1: the space before every text
        raise DataError(
            "the bytes of this tokenizer's tokens cannot be told, and so no bits per byte",
            expected=f"{len(PROBE.encode())} bytes of a text of that length",
            found=f"{counted} bytes, by its pieces",
            do="train a tokenizer with `fmscale tokenizer train`, or report this one",
        )
    return json.dumps(body, separators=(",", ":")).encode()


def _is_ours(model: bytes) -> bool:
    """Trained by `fmscale tokenizer train`, or brought in before."""
    if model.startswith(MARK):
        return True
    try:
        Tokenizer(model)
    except DataError:
        return False
    return True


def _configured(path: Path, name: str) -> list[str]:
    """What tokenizer_config.json says of a token, if it does."""
    try:
        value = json.loads((path.parent / "tokenizer_config.json").read_bytes()).get(name)
    except (OSError, ValueError, AttributeError):
        return []
    value = value.get("content") if isinstance(value, dict) else value
    return [value] if isinstance(value, str) else []


def _first(find: Any, names: Iterable[str], otherwise: int) -> int:
    return next((i for name in names if (i := find(name)) is not None), otherwise)


def _spelled(piece: str) -> bytes:
    """The text of a piece in SentencePiece's spelling: a byte as <0x0A>, a space as U+2581."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte, as byte-level BPE writes bytes (Radford et al. 2019): printable Latin-1 as it is, the others
    from U+0100 on in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(0x100 + n): byte for n, byte in enumerate(others)}}


def _size(tokenizer: Any) -> int:
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def _sentencepiece(model: bytes) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _unreadable("a SentencePiece model or a tokenizer.json", str(error)) from error


def _huggingface(text: str) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes: threads would be in their way
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "a Hugging Face tokenizer needs the tokenizers package",
            expected="tokenizers, which is not among fmscale's own dependencies",
            found="it is not installed",
            do="pip install 'fmscale[hf]'",
        ) from None
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the Rust side raises Exception itself
        raise _unreadable("a tokenizer.json of the tokenizers library", str(error)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _unreadable(expected: str, found: str) -> DataError:
    return DataError(
        "a foreign tokenizer cannot be read",
        expected=expected,
        found=(found.splitlines() or ["nothing"])[0][:200],
        do="fetch the file again; a `tokenizer.json` of Hugging Face and a SentencePiece `.model` can be brought in",
    )
