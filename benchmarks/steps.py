"""How fast steps are, one core, process time: MB of text a second, and of memory what a document of 64 MiB takes.

python -m benchmarks.debian_text OUT && python -m benchmarks.steps OUT/docs.jsonl
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.document import Document, Step
from data_pipeline.quality_model import QualityModel
from data_pipeline.registry import entries, steps_of

MB = 40
"""Of the file's beginning."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("docs", type=Path)
    documents = list(_some(parser.parse_args().docs))
    size = sum(len(document.text.encode()) for document in documents) / 1e6
    print(f"{len(documents):,} documents, {size:.1f} MB")
    with tempfile.TemporaryDirectory() as folder:
        for recipe in _recipes(Path(folder)):
            (step,) = steps_of(entries([recipe]))
            _seconds(step, documents[:10])
            seconds = min(_seconds(step, documents) for _ in range(2))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            _seconds(step, [Document("long", "so it is. " * ((1 << 26) // 10))])
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            print(f"{next(iter(recipe)):14} {size / seconds:7.1f} MB/s   {max(more, 0):5.0f} MiB more for 64 MiB")


def _recipes(folder: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """The cheap ones of memory first: it is a peak that is measured."""
    QualityModel(np.zeros(1 << 20, np.float32), 0.0, {}).save(folder / "model")
    items = (" ".join(f"w{i * k * 7919 % 100003}" for k in range(1, 60)) for i in range(20_000))
    (folder / "set.jsonl").write_text("".join(json.dumps({"question": item}) + "\n" for item in items))
    yield {"language": {"every": True}}
    yield {"classifier": {"model": str(folder / "model")}}
    yield {"decontaminate": {"against": [str(folder / "set.jsonl")]}}
    yield {"pii": {}}
    yield {"lines": {"max_upper": 0.5, "numbers": True, "counters": True, "min_words": 2, "max_removed": 0.05}}


def _some(path: Path) -> Iterator[Document]:
    held = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            yield Document("", text)
            held += len(text)
            if held > MB * 1_000_000:
                return


def _seconds(step: Step, documents: Iterable[Document]) -> float:
    begun = time.process_time()
    for _ in step(documents):
        pass
    return time.process_time() - begun


if __name__ == "__main__":
    main()
