"""How much faster two workers prepare a corpus than one: `python -m benchmarks.data_scaling DOCS.jsonl`; 15 minutes.

The whole command, Ray and all, with one worker on one core and with two on two, in turn. DOCS.jsonl is
benchmarks.debian_text's, taken several times over (documents with ids of their own; no pass for duplicates, which would
take the copies out) so that there is work for a minute; with the rules, and without them, where tokenising is the work.
A megabyte of it, prepared in the same way, says what of the command is its start.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks.data import ENVIRONMENT, FILES, RULES
from benchmarks.machine import machine_line
from benchmarks.measured import measured


def deal(documents: Path, folder: Path, copies: int, every: int = 1) -> int:
    """Each `every`-th document `copies` times, dealt to FILES files; returns their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for number, line in enumerate(documents.open("rb")) if number % every == 0]
    for number in range(FILES):
        with (folder / f"part-{number}.jsonl").open("w") as file:
            for copy in range(copies):
                for line in lines[number::FILES]:
                    file.write(json.dumps({"id": f"{line['id']} {copy}", "text": line["text"]}) + "\n")
    return sum(path.stat().st_size for path in folder.iterdir())


def prepare(source: Path, out: Path, steps: list[str], workers: int) -> tuple[float, float]:
    """(seconds, processor seconds) of the command."""
    recipe = out / "recipe.yaml"
    corpus = out / "corpus"
    body = {"inputs": [str(source)], "output": str(corpus), "tokenizer": str(out / "bpe.model"), "steps": steps}
    recipe.write_text(yaml.safe_dump({**body, "dedup": "off", "heldout_fraction": 0.0}))
    shutil.rmtree(corpus, ignore_errors=True)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:workers])  # Ray would take every core
    try:
        command = [sys.executable, "-m", "launcher.cli", "data", "prepare", str(recipe), "--workers", str(workers)]
        done = measured(command, out / "prepare.log", ENVIRONMENT)
    finally:
        os.sched_setaffinity(0, cores)
    return done.wall_s, done.cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-data-scaling"))
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    out = options.out.absolute()
    size = deal(options.documents, out / "input", options.copies)
    small = deal(options.documents, out / "small", 1, every=128)
    if not (out / "bpe.model").exists():
        command = [sys.executable, "-m", "launcher.cli", "tokenizer", "train", str(options.documents)]
        command += ["--output", str(out / "bpe.model"), "--kind", "bpe", "--vocab-size", "32768", "--sample-mb", "20"]
        subprocess.run(command, check=True, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL)
    print(machine_line())
    print(f"# {size / 1e6:.0f} MB, and {small / 1e6:.1f} MB for the start", flush=True)
    for what, steps in (("rules", RULES), ("no rules", [])):
        walls: dict[int, list[float]] = {1: [], 2: []}
        for repetition in range(options.repeat):
            for workers in (1, 2) if repetition % 2 == 0 else (2, 1):
                wall, cpu = prepare(out / "input", out, steps, workers)
                walls[workers].append(wall)
                print(f"# {what}, {workers} workers: {wall:.1f} s, {cpu:.1f} processor s", flush=True)
        starts = {workers: prepare(out / "small", out, steps, workers)[0] for workers in (1, 2)}
        one, two = (statistics.median(walls[workers]) for workers in (1, 2))
        print(
            f"{what:<10} 1 worker {one:.1f} s ({size / 1e6 / one:.1f} MB/s), 2 workers {two:.1f} s: {one / two:.2f} x"
        )
        beyond = (one - starts[1]) / (two - starts[2])
        print(f"{'':<10} of it the start {starts[1]:.1f} and {starts[2]:.1f} s; beyond it {beyond:.2f} x", flush=True)


if __name__ == "__main__":
    main()
