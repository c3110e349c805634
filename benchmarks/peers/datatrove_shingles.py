"""What datatrove's MinHash makes of documents: `python -m benchmarks.peers.datatrove_shingles DOCS.jsonl OUT.npz`.

Arrays: `lengths` [documents], how many distinct shingles each has; `shingles`, their hashes, document after document;
`keys` [documents, 14], a hash of each bucket's signature, 0 where a document has no shingle.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import xxhash
from datatrove.pipeline.dedup import MinhashDedupSignature

from benchmarks.peers.datatrove import MINHASH

Found = tuple[Any, Sequence[int]]


@cache
def maker() -> MinhashDedupSignature:
    """One a process; nothing is written into its folder."""
    return MinhashDedupSignature(output_folder=tempfile.gettempdir(), config=MINHASH)


def of_line(line: bytes) -> Found:
    shingles = maker().get_shingles(json.loads(line)["text"])
    if not shingles.size:
        return np.empty(0, np.uint64), [0] * MINHASH.num_buckets
    keys = [xxhash.xxh3_64_intdigest(np.array(part, np.uint64).tobytes()) for part in maker().get_signature(shingles)]
    return np.unique(shingles), keys


def main() -> None:
    with open(sys.argv[1], "rb") as file, multiprocessing.Pool(2) as pool:
        found = list(pool.imap(of_line, file, chunksize=64))
    shingles, keys = [own for own, _ in found], np.array([keys for _, keys in found], np.uint64)
    np.savez(
        sys.argv[2], lengths=np.array([len(own) for own in shingles]), shingles=np.concatenate(shingles), keys=keys
    )


if __name__ == "__main__":
    main()
