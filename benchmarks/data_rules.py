"""The quality rules piece by piece: `python -m benchmarks.data_rules DOCS.jsonl --peers PYTHON` (the peers' Python).

    speed    MB of text a second of processor time on one core, the fastest of some repetitions
    words    our words and spaCy's: how many only one of both has, and what they stand in

Of every k-th document. What datatrove says of the same documents is part of `benchmarks.data`; what it says of
documents on the thresholds is a test (tests/unit/test_datatrove_verdicts.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.machine import machine_line
from data_pipeline.columns import Columns
from data_pipeline.document import Document
from data_pipeline.registry import entries, steps_of
from data_pipeline.rule import batches

TOGETHER = ["gopher_repetition", "gopher_quality", "fineweb_quality"]


def read(path: Path, every: int) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(itertools.islice(file, 0, None, every)):
            yield Document(str(number), json.loads(line)["text"])


def speed(path: Path, every: int, repeat: int) -> None:
    texts = list(read(path, every))
    megabytes = sum(len(document.text.encode()) for document in texts) / 1e6
    print(f"sample: {megabytes:.1f} MB, {len(texts):,} documents")
    work: dict[str, Callable[[], object]] = {
        "JSON to texts": lambda: deque(read(path, every), 0),
        "words": lambda: [Columns([document.text for document in batch]).words for batch in batches(texts)],
    }
    for names in (*([name] for name in (*TOGETHER, "c4_quality")), TOGETHER):
        (step,) = steps_of(entries(names))
        work[", ".join(names)] = lambda step=step: deque(step(texts), 0)
    for name, function in work.items():
        print(f"{name:<56}{megabytes / min(_seconds(function) for _ in range(repeat)):>8.1f} MB/s", flush=True)


def _seconds(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def compare_words(path: Path, every: int, peers: str) -> None:
    sample = "".join(json.dumps({"text": document.text}) + "\n" for document in read(path, every))
    command = [peers, "-W", "ignore", "-m", "benchmarks.peers.spacy_words"]
    theirs = _run(command, sample).splitlines()
    different: Counter[str] = Counter()
    total = 0
    for line, document in zip(theirs, read(path, every), strict=True):
        text, words = document.text, Columns([document.text]).words
        bounds = zip(words.start.tolist(), words.stop.tolist(), strict=True)
        ours = {(start, text[start:stop]) for start, stop in bounds}
        others = {(start, word) for start, word in json.loads(line)}
        total += len(others)
        for start, _ in ours ^ others:
            begin = max(text.rfind(space, 0, start) for space in " \n\t") + 1
            different[text[begin:].split(maxsplit=1)[0][:60]] += 1
    print(f"{total:,} words of spaCy's; {sum(different.values()):,} that only one of both has")
    for piece, count in different.most_common(20):
        print(f"# {count:>5}  {piece}")


def _run(command: Sequence[str], given: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run(command, input=given, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", type=Path)
    parser.add_argument("--peers", default=".venv-bench-data/bin/python")
    parser.add_argument("--every", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=["speed", "words"])
    options = parser.parse_args()
    print(f"{machine_line()}; numpy {np.__version__}", flush=True)
    if "speed" in options.only:
        speed(options.documents, options.every, options.repeat)
    if "words" in options.only:
        compare_words(options.documents, options.every, options.peers)


if __name__ == "__main__":
    main()
