"""Tiny corpora of random tokens, through the real writer: what is tested on them cannot depend on text."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fmscale.config import Config, DataConfig, EvalConfig, ParallelConfig, RunConfig, SourceConfig, TrainConfig
from fmscale.corpus.chunks import Stream, cut_chunks, document_id, join, make_docs
from fmscale.corpus.manifest import Manifest, generation_directory
from fmscale.corpus.shards import Corpus
from fmscale.corpus.writer import publish, write_parts
from fmscale.tokenizer import Tokenizer
from fmscale.tokenizer_training import train


def make_corpus(
    directory: Path, chunks: int = 11, heldout: int = 3, chunk_tokens: int = 256, seed: int = 0, pieces: int = 460
) -> Manifest:
    """A corpus of `chunks` train chunks, and `heldout` ones of a quarter of their length. `pieces`: its vocabulary."""
    return _publish(directory, 0, {"train": chunks, "heldout": heldout}, chunk_tokens, seed, vocabulary(pieces), None)


def grow_corpus(base: Path, chunks: int, heldout: int = 0, seed: int = 100) -> Manifest:
    """Generation 1 of the corpus at `base`, with `chunks` further train chunks."""
    parent = Manifest.load(base)
    chunk_tokens = parent.split("train").chunk_tokens
    words = vocabulary(parent.vocab_size)
    return _publish(base, 1, {"train": chunks, "heldout": heldout}, chunk_tokens, seed, words, parent)


@cache
def vocabulary(pieces: int) -> Tokenizer:
    """460 trained pieces at most, and behind them, to make it a wide one, names that no text is cut into."""
    texts = (f"line {i} of some text, again {i * i}" for i in range(200))
    with TemporaryDirectory() as directory:
        words = train(texts, Path(directory) / "tokenizer.model", min(pieces, 460), kind="bpe")
    names = [f"\u2581piece{i:06d}".encode() for i in range(words.vocab_size, pieces)]
    # The model is a protocol buffer: what is appended is appended to its list of pieces. Field 1, length; in it
    # field 1, length, name; field 2 (its score), a float.
    added = [b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", -1e6) for name in names]
    return Tokenizer(words.model + b"".join(b"\x0a" + bytes([len(piece)]) + piece for piece in added))


def damage(directory: Path, chunk: int) -> None:
    """Flip a bit among the tokens of a train chunk."""
    shard = min(directory.glob("train-*.tar"))
    raw = bytearray(shard.read_bytes())
    raw[raw.index(Corpus.open(directory).tokens(chunk).tobytes()) + 9] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(raw)


def _publish(
    base: Path,
    generation: int,
    chunks: dict[str, int],
    chunk_tokens: int,
    seed: int,
    words: Tokenizer,
    parent: Manifest | None,
) -> Manifest:
    directory = generation_directory(base, generation)
    parts_at = directory / ".parts"
    parts_at.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    sizes = {"train": chunk_tokens, "heldout": chunk_tokens // 4}
    parts = []
    for split, count in chunks.items():
        length = count * sizes[split] + 1
        tokens = rng.integers(3, words.vocab_size, length).astype(words.dtype)
        stream = Stream(tokens, make_docs([length], [document_id(f"{split}-{seed}")], 0, [0]))
        parts += write_parts(parts_at, split, "00000", cut_chunks(stream, sizes[split])[0] if count else [])
    return publish(
        directory,
        parts,
        tokenizer=words,
        chunk_tokens=sizes,
        left_over={"train": 0 if chunks["train"] else 7, "heldout": 0},
        recipe={},
        counts={},
        inputs=[],
        parent=parent,
    )


def run_config(root: Path, sources: dict[str, float], **changes: Any) -> Config:
    """A config of tiny batches over the corpora root/NAME; changes by field name: dp, global_batch, micro_batch ..."""
    plain = {"seq_len": 32, "window_chunks": 4, "seed": 3, "prefetch_batches": 3, "readers_per_node": 1}
    data = {name: changes.pop(name, value) for name, value in plain.items()}
    batch = {"global_batch": changes.pop("global_batch", 10), "micro_batch": changes.pop("micro_batch", 2)}
    return Config(
        run=RunConfig(name=changes.pop("name", "r"), root=str(root / "runs")),
        data=DataConfig(sources={n: SourceConfig(corpus=str(root / n), weight=w) for n, w in sources.items()}, **data),
        train=TrainConfig(**batch),
        parallel=ParallelConfig(dp=changes.pop("dp", 1)),
        eval=EvalConfig(rows=changes.pop("eval_rows", 0)),
        **changes,
    )


def document_corpus(
    directory: Path,
    tasks: Sequence[Sequence[int]],
    chunk_tokens: int = 64,
    seed: int = 0,
    parent: Manifest | None = None,
    heldout_chunks: int = 0,
) -> Manifest:
    """A corpus of random documents: for each task the lengths of its documents, EOS included. Tails are a task too.
    What is held out is one document."""
    words = vocabulary(460)
    rng = np.random.default_rng(seed)
    parts_at = directory / ".parts"
    parts_at.mkdir(parents=True)
    parts, tails = [], []
    for task, lengths in enumerate(tasks):
        tokens = rng.integers(3, words.vocab_size, sum(lengths)).astype(words.dtype)
        tokens[np.cumsum(lengths, dtype=np.int64) - 1] = words.eos_id
        ids = [document_id(f"{seed}-{task}-{i}") for i in range(len(lengths))]
        chunks, tail = cut_chunks(Stream(tokens, make_docs(lengths, ids, task, range(len(ids)))), chunk_tokens)
        parts += write_parts(parts_at, "train", f"{task:05d}", chunks)
        tails.append(tail)
    chunks, tail = cut_chunks(join(tails, words.dtype), chunk_tokens)
    parts += write_parts(parts_at, "train", "tails", chunks)
    if heldout_chunks:
        tokens = rng.integers(3, words.vocab_size, heldout_chunks * chunk_tokens + 1).astype(words.dtype)
        stream = Stream(tokens, make_docs([len(tokens)], [document_id(f"{seed}-heldout")], 0, [0]))
        parts += write_parts(parts_at, "heldout", "00000", cut_chunks(stream, chunk_tokens)[0])
    return publish(
        directory,
        parts,
        tokenizer=words,
        chunk_tokens={"train": chunk_tokens, "heldout": chunk_tokens},
        left_over={"train": len(tail.tokens), "heldout": 0},
        recipe={},
        counts={},
        inputs=[],
        parent=parent,
    )
