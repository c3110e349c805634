"""`make bench-reshard`: time to resume at another topology and at the same one, and DeepSpeed's way beside it.

For each reader one line: it reads, verification included, a checkpoint that it wrote itself and one of another
topology, in turn; the ratio is what resharding costs. A time is from the first look at the files to the last rank's
parameters in place, in engines that stand already; the files are dropped from the page cache before. Beside it what
DeepSpeed needs: conversion to its universal format, then loading that, over loading its ordinary checkpoint at the
same topology. Bytes are what the reading processes took from the disk (/proc/self/io).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_line
from fmscale.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from fmscale.topology import Topology
from tests.ranks import run_ranks

LAYOUTS: dict[str, tuple[Any, ParallelConfig]] = {
    "zero 1, 2 ranks": ("zero", ParallelConfig(dp=2, zero=1)),
    "zero 3, 2 ranks": ("zero", ParallelConfig(dp=2, zero=3)),
    "pipeline of 2": ("pipe", ParallelConfig(dp=1, pp=2, zero=0)),
    "plain, 1 rank": ("plain", ParallelConfig(dp=1)),
    "zero 1, 1 rank": ("zero", ParallelConfig(dp=1, zero=1)),
}
PAIRS = [
    ("zero 3, 2 ranks", "zero 1, 2 ranks"),
    ("pipeline of 2", "zero 1, 2 ranks"),
    ("zero 1, 2 ranks", "plain, 1 rank"),
    ("plain, 1 rank", "zero 1, 2 ranks"),
]
"""(reader, writer)."""


def config_of(layout: str, layers: int) -> Config:
    engine, parallel = LAYOUTS[layout]
    return Config(
        engine=engine,
        parallel=parallel,
        model=ModelConfig(vocab_size=16384, d_model=768, n_layers=layers, n_heads=12, n_kv_heads=12, d_ff=2048),
        train=TrainConfig(global_batch=2, micro_batch=1),
        data=DataConfig(seq_len=64),
    )


def forget(directory: Path) -> None:
    """Drop the files of `directory` from the page cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def disk_bytes() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def measured(rank: int, directory: Path, work: Callable[[], None]) -> tuple[float, int]:
    """(seconds until the last rank is done, bytes that this rank took from the disk)."""
    import torch.distributed as dist

    dist.barrier()
    if rank == 0:
        forget(directory)
    dist.barrier()
    before, started = disk_bytes(), time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - started, disk_bytes() - before


def write_ours(rank: int, world: int, config: Config, run_dir: Path) -> None:
    import torch

    from fmscale.training.checkpoint import CheckpointStore
    from fmscale.training.engine import build_engine

    engine = build_engine(config, Topology(dp=config.parallel.dp, pp=config.parallel.pp), rank, torch.device("cpu"))
    store = CheckpointStore(run_dir / "checkpoints")
    store.write_rank(1, 1, rank, engine.fragments())
    if rank == 0:
        store.commit(1, 1, world, 2, None, {"optimizer_steps": 1})
    engine.close()


def read_ours(rank: int, world: int, config: Config, run_dirs: list[Path], times: int) -> list[list[tuple[float, int]]]:
    """For each time, for each run directory."""
    import torch

    from fmscale.training.checkpoint import CheckpointStore
    from fmscale.training.engine import build_engine

    engine = build_engine(config, Topology(dp=config.parallel.dp, pp=config.parallel.pp), rank, torch.device("cpu"))

    def resume(run_dir: Path) -> None:
        store = CheckpointStore(run_dir / "checkpoints")
        reader = store.open(next(iter(store.candidates())))
        reader.verify(engine.wanted())
        torch.distributed.barrier()
        engine.load_fragments(reader.read)

    found = []
    for _ in range(times):
        found.append([measured(rank, run_dir, lambda d=run_dir: resume(d)) for run_dir in run_dirs])  # type: ignore[misc]
    engine.close()
    return found


def deepspeed(rank: int, world: int, config: Config, directory: Path, what: str, times: int) -> list[tuple[float, int]]:
    import torch

    from fmscale.training import deepspeed_start
    from fmscale.training.engine_zero import ZeroEngine

    plain = deepspeed_start.settings
    universal = {"checkpoint": {"load_universal": what == "universal"}}
    deepspeed_start.settings = lambda *arguments: plain(*arguments) | universal  # type: ignore[assignment]
    try:
        engine = ZeroEngine(config, Topology(dp=config.parallel.dp), rank, torch.device("cpu"))
    finally:
        deepspeed_start.settings = plain
    tag = "converted" if what == "universal" else "saved"
    if what == "save":
        engine._ds.save_checkpoint(str(directory), tag=tag)
        return []
    return [
        measured(rank, directory, lambda: engine._ds.load_checkpoint(str(directory), tag=tag)) for _ in range(times)
    ]


def convert(directory: Path) -> float:
    forget(directory)
    paths = ["--input_folder", str(directory / "saved"), "--output_folder", str(directory / "converted")]
    workers = ["--num_extract_workers", "2", "--num_merge_workers", "2", "--inject_missing_state"]
    started = time.perf_counter()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *paths, *workers]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "DS_ACCELERATOR": "cpu"})
    os.sync()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=None, help="where checkpoints go; a disk, not tmpfs")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="reshard-", dir=arguments.directory))
    try:
        report(root, arguments.layers, arguments.times)
    finally:
        shutil.rmtree(root)


def report(root: Path, layers: int, times: int) -> None:
    from fmscale.observe.flops import parameter_count
    from fmscale.training.lease import Lease

    print(machine_line())
    configs = {layout: config_of(layout, layers) for layout in LAYOUTS}
    print(f"# {parameter_count(next(iter(configs.values())).model):,} parameters; median of {times}", flush=True)
    for layout in {layout for pair in PAIRS for layout in pair}:
        Lease(root / layout).open_term(None)
        run_ranks(write_ours, configs[layout].world_size, configs[layout], root / layout, timeout_s=300)
    for reader, writer in PAIRS:
        config, run_dirs = configs[reader], [root / reader, root / writer]
        ranks = run_ranks(read_ours, config.world_size, config, run_dirs, times, timeout_s=600)
        same, other = ([each[which][0] for each in ranks[0]] for which in (0, 1))
        took = [max(each[which][1] for rank in ranks for each in rank) for which in (0, 1)]
        size = sum(path.stat().st_size for path in (root / writer / "checkpoints").rglob("*.safetensors"))
        ratio = statistics.median(other) / statistics.median(same)
        print(
            f"{reader:<16} reads its own {_seconds(same)}, of {writer:<16} {_seconds(other)}: x {ratio:.2f} (fastest: "
            f"x {min(other) / min(same):.2f});  a rank took {took[0] / 1e6:,.0f} and {took[1] / 1e6:,.0f} MB of "
            f"{size / 1e6:,.0f} from the disk",
            flush=True,
        )
    for layout in ("zero 1, 2 ranks", "zero 1, 1 rank"):
        place = root / f"deepspeed {layout}"
        run_ranks(deepspeed, configs[layout].world_size, configs[layout], place, "save", 0, timeout_s=300)
    one, two = root / "deepspeed zero 1, 1 rank", root / "deepspeed zero 1, 2 ranks"
    single = configs["zero 1, 1 rank"]
    own = run_ranks(deepspeed, 1, single, one, "load", times, timeout_s=300)[0]
    conversion = convert(two)
    loads = run_ranks(deepspeed, 1, single, two, "universal", times, timeout_s=300)[0]
    same, other = [each[0] for each in own], [each[0] for each in loads]
    ratio = (conversion + statistics.median(other)) / statistics.median(same)
    print(
        f"DeepSpeed zero 1, 1 rank, unverified: reads its own {_seconds(same)}, of zero 1, 2 ranks: conversion "
        f"{conversion:.1f} s and {_seconds(other)}: x {ratio:.2f}"
    )


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
