"""Small corpora of texts made of our own words; and the golden corpus, byte for byte."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fmscale.corpus.chunks import Stream, cut_chunks, document_id, join, make_docs
from fmscale.corpus.index import Shard
from fmscale.corpus.manifest import Manifest, token_dtype
from fmscale.corpus.verify import open_parts
from fmscale.corpus.writer import Part, publish, write_parts
from fmscale.tokenizer import Tokenizer
from fmscale.tokenizer_training import train

GOLDEN = Path(__file__).parent / "golden" / "corpus"
WORDS = re.findall(
    r"\w+",
    "the tide carries small boats over grey sand while an old clock counts seven bells beside our quiet harbour "
    "nobody writes letters here but each morning someone paints another window blue and waits for rain",
)


def text(number: int) -> str:
    """Document `number`: some lines of WORDS, chosen by arithmetic, with what tokenizers trip over now and then."""
    lines = []
    for line in range(2 + number % 5):
        places = (number * 7 + line * 11 + k * (3 + number % 4) for k in range(4 + (number + line) % 6))
        words = " ".join(WORDS[place % len(WORDS)] for place in places)
        lines.append("    " * (line % 3) + words + ".!?;"[(number + line) % 4])
    return "\n".join(lines) + ("\n\tna\u00efve \u2581 \u6f6e <eos>\n" if number % 9 == 0 else "\n")


def texts(count: int, first: int = 0) -> list[str]:
    return [text(number) for number in range(first, first + count)]


@cache
def tokenizer() -> Tokenizer:
    """512 pieces: 175 reserved, 256 bytes, and what WORDS teach."""
    with TemporaryDirectory() as directory:
        return train(texts(200), Path(directory) / "tokenizer.model", 512, "bpe")


def stream(documents: Sequence[str], file: int = 0) -> Stream:
    """The documents' tokens, each closed by EOS."""
    dtype = token_dtype(tokenizer().vocab_size)
    encoded = [np.append(ids, tokenizer().eos_id).astype(dtype) for ids in tokenizer().encode_batch(documents)]
    ids = [document_id(document) for document in documents]
    docs = make_docs([len(tokens) for tokens in encoded], ids, file, np.arange(len(encoded)))
    return Stream(np.concatenate(encoded), docs)


def corpus(
    directory: Path,
    train_documents: Sequence[str],
    heldout_documents: Sequence[str] = (),
    *,
    chunk_tokens: int = 64,
    tasks: int = 2,
    parent: Manifest | None = None,
    inputs: Sequence[str] = ("words",),
) -> Manifest:
    """Publish a corpus; its training documents are cut by `tasks` tasks, an input each, their tails by one more."""
    work = directory / ".work"
    work.mkdir(parents=True, exist_ok=True)
    parts: list[Part] = []
    left_over: dict[str, int] = {}
    for split, documents, count in (("train", train_documents, tasks), ("heldout", heldout_documents, 1)):
        tails = []
        for task in range(count):
            share = documents[len(documents) * task // count : len(documents) * (task + 1) // count]
            chunks, tail = cut_chunks(stream(share, task), chunk_tokens) if share else ([], join([], np.uint16))
            parts += write_parts(work, split, f"{task:05d}", chunks)
            tails.append(tail)
        chunks, tail = cut_chunks(join(tails, np.uint16), chunk_tokens)
        parts += write_parts(work, split, "tails", chunks)
        left_over[split] = len(tail.tokens)
    manifest = publish(
        directory,
        parts,
        tokenizer=tokenizer(),
        chunk_tokens={"train": chunk_tokens, "heldout": chunk_tokens},
        left_over=left_over,
        recipe={"heldout": "the last documents"},
        counts={"in": len(train_documents) + len(heldout_documents), "dropped": {}},
        inputs=[{"path": path, "bytes": 0, "hash": ""} for path in inputs],
        parent=parent,
    )
    for path in work.iterdir():
        path.unlink()
    work.rmdir()
    return manifest


def shards_of(directory: Path) -> list[Shard]:
    """All shards of generation 0 of the corpus at `directory`, in the order of its index."""
    return [shard for part in next(open_parts(directory)) for shard in part.shards]


def golden(directory: Path) -> None:
    """Write the golden corpus: two splits, a second generation. A changed format shows as changed bytes."""
    base = corpus(directory, texts(12), texts(4, first=100), tasks=1)
    corpus(directory / "gen-0001", texts(4, first=200), tasks=1, parent=base)
