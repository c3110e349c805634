"""What a corpus says about itself: `manifest.json`, the commit marker that is written last and believed alone.

The file is canonical JSON (sorted keys, two spaces, one final newline) with a hash of all its other lines. Loading
hashes the bytes as they lie there, so that no flipped byte passes, not even one of white space. It is small whatever
the corpus' size: what grows with it (chunks, shards, inputs) stands in files of their own, which the manifest keeps the
hashes of. The page with every field: docs/formats.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fmscale.corpus.blocks import BlockFile
from fmscale.errors import DataError

FORMAT = "fmscale-corpus"
VERSION = 2
MARKER = "manifest.json"
TOKENIZER_FILE = "tokenizer.model"
SPLITS = ("train", "heldout")


@dataclass(frozen=True, kw_only=True)
class Split:
    chunk_tokens: int
    """C: a chunk holds C + 1 tokens, of which C are inputs."""
    chunks: int
    first_chunk: int
    """Number of its first chunk in the index."""
    shards: int
    first_shard: int
    """Number of its first shard in the index."""
    bytes: int
    """Of its shards."""
    tokens: int
    """Input tokens: chunks * chunk_tokens. Each token of the stream is an input once."""
    documents: int
    """Documents that begin in its chunks."""
    tokens_left_over: int
    """Tokens at the end of the stream that filled no chunk and are not in the corpus."""


@dataclass(frozen=True, kw_only=True)
class InputsFile:
    """The raw files in their pinned order, one a line: `inputs.py` reads it."""

    file: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    generation: int
    parent: str | None
    """`manifest_hash` of the generation before; None in generation 0."""
    content_hash: str
    """sha256 over the hashes of all chunks in index order: equal if and only if the chunks are."""
    index: BlockFile
    splits: Mapping[str, Split]
    token_dtype: str
    vocab_size: int
    tokenizer: Mapping[str, Any]
    """fingerprint (sha256 of tokenizer.model), kind, and the ids of pad, bos, eos, unk."""
    recipe: Mapping[str, Any]
    counts: Mapping[str, Any]
    """Documents in, out, and dropped by reason."""
    inputs: InputsFile

    @cached_property
    def manifest_hash(self) -> str:
        """sha256 of the bytes of manifest.json without the line that says it."""
        return hashlib.sha256(_render(self._body())).hexdigest()

    def split(self, name: str) -> Split:
        """The split called `name`. Raises DataError if there is none."""
        if name not in self.splits:
            raise DataError(
                f"the corpus has no split `{name}`",
                expected=" or ".join(self.splits),
                found=name,
                do="ask for a split that it has",
            )
        return self.splits[name]

    def check_follows(self, parent: Manifest, directory: Path) -> None:
        """Raises DataError unless this can be the generation after `parent`: same tokenizer, same chunk sizes."""
        for what, mine, theirs in (
            ("generation", self.generation, parent.generation + 1),
            ("parent", self.parent, parent.manifest_hash),
            ("tokenizer", dict(self.tokenizer), dict(parent.tokenizer)),
            ("token_dtype", self.token_dtype, parent.token_dtype),
            ("vocab_size", self.vocab_size, parent.vocab_size),
            ("chunk_tokens", _chunk_tokens(self), _chunk_tokens(parent)),
        ):
            if mine != theirs:
                raise DataError(
                    f"{directory} is no further generation of the corpus: its {what} does not fit",
                    expected=str(theirs)[:200],
                    found=str(mine)[:200],
                    do="prepare the new text with the corpus' own tokenizer and chunk sizes, or as a corpus of its own",
                )

    def render(self) -> bytes:
        """The bytes of manifest.json."""
        return _render({**self._body(), "manifest_hash": self.manifest_hash})

    def _body(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    @staticmethod
    def load(directory: str | Path) -> Manifest:
        """The manifest of `directory`, verified to the last byte.

        Raises DataError: no marker, a byte that is not as written, a format or version that this code does not know.
        """
        path = Path(directory) / MARKER
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                "no finished corpus here",
                expected=f"{path}, written last by `fmscale data prepare`",
                found="a directory without a manifest" if path.parent.is_dir() else "no such directory",
                do="run the same `fmscale data prepare` again (it goes on where it stopped), or correct the path",
            ) from None
        try:
            record = json.loads(raw.decode())
            form, version = record.pop("format"), record.pop("version")
            said = record.pop("manifest_hash")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}".splitlines()[0]) from error
        if (form, version) != (FORMAT, VERSION) and raw == _render(
            {"format": form, "version": version, **record, "manifest_hash": said}
        ):
            raise DataError(
                f"{path} is of a format that this version cannot read",
                expected=f"{FORMAT} version {VERSION}",
                found=f"{form} version {version}",
                do="use the fmscale that wrote it, or prepare the corpus again",
            )
        # Two spaces: a field of the manifest itself, not one of the recipe's that has the same name.
        hashed = raw.replace(f'\n  "manifest_hash": "{said}",\n'.encode("ascii", "replace"), b"\n", 1)
        if (found := hashlib.sha256(hashed).hexdigest()) != said:
            raise _damaged(path, f"{found[:16]}...", str(said))
        try:
            manifest = _from_record(record)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}".splitlines()[0]) from error
        vars(manifest)["manifest_hash"] = said  # as just computed
        return manifest


def generation_directory(base: Path, generation: int) -> Path:
    """Where a generation of the corpus at `base` lies: `base` itself, then gen-0001, gen-0002 ... in it."""
    return base / f"gen-{generation:04d}" if generation else base


def _chunk_tokens(manifest: Manifest) -> dict[str, int]:
    return {name: split.chunk_tokens for name, split in manifest.splits.items()}


def _from_record(record: dict[str, Any]) -> Manifest:
    fields = dict(record)
    fields["index"] = BlockFile(**record["index"])
    fields["inputs"] = InputsFile(**record["inputs"])
    fields["splits"] = {name: Split(**record["splits"][name]) for name in SPLITS}
    return Manifest(**fields)


def _damaged(path: Path, found: str, expected: str = "JSON as it was written") -> DataError:
    return DataError(
        f"{path} is damaged",
        expected=f"manifest_hash {expected[:16]}..." if len(expected) == 64 else expected,
        found=found[:200],
        do="restore the corpus from a copy, or prepare it again",
    )


def _render(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return (text + "\n").encode()


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 65536 else np.dtype("<u4")


def check_tokenizer(directory: Path, manifest: Manifest) -> None:
    """Raises DataError unless tokenizer.model is the one that the manifest names."""
    path = directory / TOKENIZER_FILE
    expected = str(manifest.tokenizer["fingerprint"])
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no such file"
    if found != expected:
        raise DataError(
            f"{path} is damaged or missing",
            expected=f"sha256 {expected}",
            found=found,
            do="restore the corpus from a copy, or prepare it again",
        )
