"""One loader, measured in a process of its own: `python -m benchmarks.contender MODULE:EPOCHS DIRECTORY`.

Prints one line of JSON. Its files are in the page cache. The clock starts with the modules imported and Ray, where
needed, up, and stops at the consumer: so opening the data set and the first use of everything are in the first epoch.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import statistics
import time
from pathlib import Path

import torch

from benchmarks.contract import ROWS, SEQ_LEN, checksum_of, expected_checksum


def measure(name: str, directory: Path, seconds: float) -> dict[str, object]:
    """Whole epochs until `seconds` have gone by, and no more than that of one epoch.

    M tokens/s: first_epoch, steady (median of later epochs; without one, after the first batch), per_cpu_s (likewise,
    by the processor time of this process, which is what others on the machine do not change). exact: every finished
    epoch had each row once; None if none was finished.
    """
    module, _, function = name.partition(":")
    epochs_of = getattr(importlib.import_module(f"benchmarks.{module}"), function or "epochs")
    want = expected_checksum(directory.parent / "tokens.npy")
    for path in directory.rglob("*"):
        if path.is_file():
            path.read_bytes()
    epochs = epochs_of(directory)
    started = time.perf_counter()
    result: dict[str, object] = {"exact": None}
    rates: list[float] = []
    per_cpu_s: list[float] = []
    while (now := time.perf_counter()) - started < seconds:
        begin, cpu, rows, checksum, first_batch = started if not rates else now, time.process_time(), 0, 0, 0.0
        for inputs, labels in next(epochs):
            rows += len(inputs)
            checksum += checksum_of(inputs, labels)
            first_batch = first_batch or time.perf_counter()
            if time.perf_counter() - begin > seconds:
                break
        else:
            result["exact"] = result["exact"] is not False and (rows, checksum) == (ROWS, want)
        ended = time.perf_counter()
        if not rates:
            result["first_batch_s"] = first_batch - started
            result["first_epoch"] = rows * SEQ_LEN / (ended - started) / 1e6
            result["steady"] = (rows - len(inputs)) * SEQ_LEN / max(1e-9, ended - first_batch) / 1e6
        rates.append(rows * SEQ_LEN / (ended - begin) / 1e6)
        per_cpu_s.append(rows * SEQ_LEN / (time.process_time() - cpu) / 1e6)
    if len(rates) > 1:
        result["steady"] = statistics.median(rates[1:])
    result["per_cpu_s"] = statistics.median(per_cpu_s[1:] or per_cpu_s)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="module below benchmarks, and its function: peers.litdata:epochs")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--core", type=int, default=-1)
    options = parser.parse_args()
    if options.prepare:
        options.directory.mkdir(parents=True, exist_ok=True)
        module = importlib.import_module(f"benchmarks.{options.name.partition(':')[0]}")
        module.prepare(options.directory, options.directory.parent / "tokens.npy")
        return
    if options.core >= 0:
        os.sched_setaffinity(0, {options.core})
        torch.set_num_threads(1)
    print(json.dumps(measure(options.name, options.directory, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
