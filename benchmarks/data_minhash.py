"""MinHash over real text, piece by piece and all passes: `python -m benchmarks.data_minhash DOCS.jsonl`.

Pieces: MB of JSONL a second of processor time on one core, the fastest of some repetitions; words are part of the
5-grams, and these of signatures. All passes: from the file to files of kept documents, in as many processes as are
asked for: keys of each task, edges of each band, clusters, filter. Seconds on the clock, which other programs lengthen,
and of processor time in all processes. The input is cut into tasks at line ends; what is kept depends on neither.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine_line
from data_pipeline.clusters import clusters, sizes
from data_pipeline.document import Document
from data_pipeline.keys import read_edges, write_edges, write_keys
from data_pipeline.line_dedup import line_keys
from data_pipeline.minhash import signatures
from data_pipeline.ngrams import ngrams, word_hashes
from data_pipeline.rule import batches

BANDS, PARTITIONS = 14, 1


def cut(path: Path, tasks: int) -> list[tuple[int, int]]:
    """(begin, end) of each task in the file's bytes."""
    bounds = [0]
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for number in range(1, tasks):
            file.seek(size * number // tasks)
            file.readline()
            bounds.append(file.tell())
    return list(zip(bounds, [*bounds[1:], size], strict=True))


def read(path: Path, task: tuple[int, int]) -> Iterator[tuple[bytes, str]]:
    """(line, its text)."""
    with path.open("rb") as file:
        file.seek(task[0])
        while file.tell() < task[1]:
            line = file.readline()
            yield line, json.loads(line)["text"]


def text_batches(path: Path, task: tuple[int, int]) -> Iterator[list[str]]:
    for batch in batches(Document("", text) for _, text in read(path, task)):
        yield [document.text for document in batch]


def make_keys(path: Path, folder: Path, number: int, task: tuple[int, int]) -> int:
    keys = np.concatenate([np.empty((0, BANDS), np.uint64), *map(signatures, text_batches(path, task))])
    write_keys(folder / f"keys-{number}", keys, PARTITIONS)
    return len(keys)


def make_edges(folder: Path, files: list[Path], offsets: list[int], band: int) -> Path:
    write_edges(folder / f"edges-{band}", files, offsets, band, 0)
    return folder / f"edges-{band}"


def keep(path: Path, folder: Path, offsets: list[int], number: int, task: tuple[int, int]) -> int:
    kept = np.load(folder / "kept.npy", mmap_mode="r")[offsets[number] : offsets[number + 1]]
    with (folder / f"kept-{number}.jsonl").open("wb") as out:
        for (line, _), stays in zip(read(path, task), kept.tolist(), strict=True):
            if stays:
                out.write(line)
    return int(kept.sum())


def all_passes(
    path: Path, folder: Path, processes: int, tasks: int
) -> tuple[int, dict[int, int], dict[str, float], float]:
    """(documents kept, clusters by size, seconds of each pass, seconds of processor time)."""
    seconds: dict[str, float] = {}
    pieces = list(enumerate(cut(path, tasks)))
    files = [folder / f"keys-{number}" for number, _ in pieces]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(abs, range(processes))  # starting and importing is not measured
        spent = time.process_time()
        started = time.perf_counter()

        def lap(name: str) -> None:
            seconds[name] = time.perf_counter() - started - sum(seconds.values())

        def done(answers: list[tuple[Any, float]]) -> list[Any]:
            nonlocal of_workers
            of_workers += sum(cpu for _, cpu in answers)
            return [answer for answer, _ in answers]

        of_workers = 0.0
        counts = done(pool.map(timed, [(make_keys, path, folder, *piece) for piece in pieces], chunksize=1))
        offsets = np.cumsum([0, *counts]).tolist()
        lap("keys")
        bands = [(make_edges, folder, files, offsets, band) for band in range(BANDS)]
        edges = done(pool.map(timed, bands, chunksize=1))
        lap("edges")
        label = clusters(offsets[-1], read_edges(files, offsets, edges))
        np.save(folder / "kept.npy", label == np.arange(len(label)))
        by_size = sizes(label)
        lap("clusters")
        kept = sum(done(pool.map(timed, [(keep, path, folder, offsets, *piece) for piece in pieces], chunksize=1)))
        lap("filter")
    return kept, by_size, seconds, of_workers + time.process_time() - spent


def timed(call: tuple[Any, ...]) -> tuple[Any, float]:
    """(answer, seconds of processor time) of a function and its arguments."""
    started = time.process_time()
    return call[0](*call[1:]), time.process_time() - started


def rate(work: Callable[[], Any], megabytes: float, repeat: int) -> float:
    """MB a second of processor time."""
    best = float("inf")
    for _ in range(repeat):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return megabytes / best


def pieces(path: Path, sample_bytes: int, repeat: int) -> None:
    size = path.stat().st_size
    task = cut(path, max(1, round(size / sample_bytes)))[0]
    megabytes = task[1] / 1e6
    texts = list(text_batches(path, task))
    keys = np.concatenate([signatures(batch) for batch in texts])
    print(f"sample: {megabytes:.0f} MB, {len(keys)} documents")
    with tempfile.TemporaryDirectory() as folder:
        file, edges = Path(folder) / "keys", Path(folder) / "edges"

        def merge() -> None:
            write_keys(file, keys, PARTITIONS)
            for band in range(BANDS):
                write_edges(edges, [file], [0, len(keys)], band, 0)

        write_keys(file, keys, PARTITIONS)
        for name, work in (
            ("JSON to texts", lambda: list(text_batches(path, task))),
            ("words", lambda: [list(word_hashes("\n".join(batch))) for batch in texts]),
            ("5-grams of words", lambda: [list(ngrams(batch, 5, short=True)) for batch in texts]),
            ("signatures, 14 x 8", lambda: [signatures(batch) for batch in texts]),
            ("keys sorted and written, merged", merge),
            ("clusters", lambda: clusters(len(keys), read_edges([file], [0, len(keys)], []))),
            ("lines (of line_dedup)", lambda: [list(line_keys(batch, 20)) for batch in texts]),
        ):
            print(f"{name:<40}{rate(work, megabytes, repeat):>10.1f} MB/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("docs", type=Path)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--sample-mb", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{machine_line()}; numpy {np.__version__}", flush=True)
    pieces(arguments.docs, arguments.sample_mb * 1_000_000, arguments.repeat)
    megabytes = arguments.docs.stat().st_size / 1e6
    for processes in arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            kept, by_size, seconds, spent = all_passes(arguments.docs, Path(folder), processes, arguments.tasks)
        total = sum(seconds.values())
        parts = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
        print(f"all passes, {processes} processes: {total:.2f} s ({parts})")
        print(
            f"  {megabytes / total / processes:.1f} MB/s a core on the clock, {megabytes / spent:.1f} of processor time"
        )
        documents = sum(size * many for size, many in by_size.items())
        largest = max(by_size)
        print(f"  {documents} documents, {kept} kept; {by_size.get(1, 0)} alone, the largest cluster has {largest}")


if __name__ == "__main__":
    main()
