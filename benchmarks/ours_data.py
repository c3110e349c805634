"""Our side of `benchmarks.data`: `python -m benchmarks.ours_data WHAT INPUT OUT --workers 2`. Prints one line of JSON.

    verdicts    what each rule says of each document, asked alone: OUT/verdicts.jsonl
    rules       Gopher repetition, Gopher quality, FineWeb quality, one after another: OUT/kept.txt
    minhash     14 x 8 hashes of 5-grams, all passes: OUT/kept.txt

The functions that `fmscale data prepare` calls, task after task, in so many processes.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.pool import Pool
from pathlib import Path

from data_pipeline import passes
from data_pipeline.document import Document, through
from data_pipeline.inputs import Inputs, pin
from data_pipeline.join import join, part
from data_pipeline.phases import documents, phases
from data_pipeline.pipeline import Recipe
from data_pipeline.plan import Plan, Work
from data_pipeline.read import Fields, read_piece
from data_pipeline.registry import STEPS, entries, steps_of
from data_pipeline.scan import scan

RULES = ("gopher_repetition", "gopher_quality", "fineweb_quality")
ALONE = (*RULES, "c4_quality")
"""Whose verdicts are compared."""


def rules(pool: Pool, inputs: Inputs, out: Path) -> dict[str, float]:
    return {"rules": _over_tasks(pool, functools.partial(_kept_by_rules, inputs, out), range(len(inputs.tasks)))}


def _kept_by_rules(inputs: Inputs, out: Path, task: int) -> None:
    kept = through(_documents(inputs, task), steps_of(entries(RULES)), lambda rejected: None)
    _write_ids(out, task, [document.id for document in kept])


def minhash(pool: Pool, inputs: Inputs, out: Path) -> dict[str, float]:
    """Scan, edges, clusters, and the texts read again for the ids of those that stay, as the peer's filter does."""
    recipe = Recipe(inputs=["-"], output=str(out), tokenizer="-", steps=["minhash_dedup"], heldout_fraction=0.0)
    work = Work.create(out / "work", Plan.of(recipe, inputs, "none"))
    ends = phases(recipe)[0].ends
    assert ends is not None
    seconds = {"signatures": _over_tasks(pool, functools.partial(scan, work, phase=0), work.tasks)}
    seconds["edges"] = _over_tasks(pool, functools.partial(part, work, phase=0), passes.of(ends).parts(work))
    begin = time.perf_counter()
    join(work, 0)
    seconds["clusters"] = time.perf_counter() - begin
    seconds["filter"] = _over_tasks(pool, functools.partial(_kept_by_pass, work, out), work.tasks)
    return seconds


def _kept_by_pass(work: Work, out: Path, task: int) -> None:
    _write_ids(out, task, [document.id for document in documents(work, 1, task) if not document.dropped])


def verdicts(pool: Pool, inputs: Inputs, out: Path) -> dict[str, float]:
    seconds = _over_tasks(pool, functools.partial(_judge_task, inputs, out), range(len(inputs.tasks)))
    with (out / "verdicts.jsonl").open("w") as file:
        for path in sorted(out.glob("verdicts-*.jsonl")):
            file.write(path.read_text())
    return {"verdicts": seconds}


def _judge_task(inputs: Inputs, out: Path, task: int) -> None:
    read = _documents(inputs, task)
    found: list[dict[str, str]] = [{"id": document.id} for document in read]
    for name in (name for name in ALONE if name in STEPS):
        (step,) = steps_of(entries([name]))
        for verdict, document in zip(found, step(read), strict=True):
            verdict[name] = document.dropped.rpartition("/")[2]
    lines = "".join(json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in found)
    (out / f"verdicts-{task:05d}.jsonl").write_text(lines)


def _documents(inputs: Inputs, task: int) -> list[Document]:
    return [each for piece in inputs.tasks[task] for each in read_piece(inputs.files[piece.file], piece, Fields(), 0)]


def _write_ids(out: Path, task: int, ids: list[str]) -> None:
    (out / f"kept-{task:05d}.txt").write_text("".join(f"{name}\n" for name in ids))


def _over_tasks(pool: Pool, work: Callable[[int], object], tasks: range) -> float:
    begin = time.perf_counter()
    for _ in pool.imap_unordered(work, tasks):
        pass
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("verdicts", "rules", "minhash"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    inputs = pin([str(options.source)])
    with multiprocessing.Pool(options.workers) as pool:
        stages = {"verdicts": verdicts, "rules": rules, "minhash": minhash}[options.what](pool, inputs, options.out)
    kept = sorted(name for path in options.out.glob("kept-*.txt") for name in path.read_text().splitlines())
    (options.out / "kept.txt").write_text("".join(f"{name}\n" for name in kept))
    record = {"wall_s": round(time.perf_counter() - begin, 2), "kept": len(kept)}
    print(json.dumps({**record, "stages_s": {name: round(taken, 2) for name, taken in stages.items()}}), flush=True)


if __name__ == "__main__":
    main()
