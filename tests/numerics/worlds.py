"""Jobs for engines on real ranks, many to a process: what tests compare is made here and nowhere else.

    outcomes = train([Job(config(engine="zero", zero=3, dp=2), steps=5), ...])     # in the order of the jobs

Jobs that need the same number of ranks share one world, since starting processes costs more than training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fmscale.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from fmscale.topology import Topology, rank_rows
from tests.ranks import run_ranks

VOCABULARY, SEQ_LEN, GLOBAL_BATCH, MICRO_BATCH = 100, 12, 8, 2

# All relative. Loss and norm hold for 5 steps, in which bf16 rounds weights that hardly differ to neighbours: measured
# 1e-7 and 4e-6 in fp32, 3e-5 and 6e-4 in bf16. Gradient holds for the first step: measured 6e-6, in bf16 2e-5.
TOLERANCES = {
    "fp32": {"loss": 1e-5, "norm": 1e-4, "gradient": 1e-5},
    "bf16": {"loss": 1e-3, "norm": 1e-2, "gradient": 5e-5},
}


class Shape(NamedTuple):
    """Of a global batch: rows of SEQ_LEN tokens, cut into sequences."""

    rows: int = GLOBAL_BATCH
    seq_len: int = SEQ_LEN


WHOLE = Shape()


def config(
    engine: Any = "plain", *, dp: int = 1, pp: int = 1, zero: int = 1, precision: Any = "fp32", tied: bool = False
) -> Config:
    """A decoder of 36,000 parameters: none is a multiple of 3 long, and its vocabulary is padded."""
    return Config(
        engine=engine,
        parallel=ParallelConfig(dp=dp, pp=pp, zero=zero),
        model=ModelConfig(
            vocab_size=VOCABULARY, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=64, tie_embeddings=tied
        ),
        train=TrainConfig(global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH, precision=precision, grad_clip=0.5),
        data=DataConfig(seq_len=SEQ_LEN),
    )


def label(config: Config) -> str:
    """What a failing test calls it."""
    parallel, tied = config.parallel, " tied" if config.model.tie_embeddings else ""
    zero = "" if config.engine == "plain" else f" zero={parallel.zero}"
    return f"{config.engine}{zero} dp={parallel.dp} pp={parallel.pp} {config.train.precision}{tied}"


@dataclass(frozen=True)
class State:
    """A checkpoint in memory: (param, kind) -> the whole of it, flat."""

    steps: int
    arrays: dict[tuple[str, str], npt.NDArray[np.float32]]
    shapes: dict[str, tuple[int, ...]]

    def differences(self, other: State) -> list[str]:
        """Names of what is not equal to the bit."""
        names = sorted(self.arrays.keys() | other.arrays.keys())
        unequal = [
            f"{param} {kind}"
            for param, kind in names
            if self.arrays[param, kind].tobytes() != other.arrays[param, kind].tobytes()
        ]
        return unequal + ([] if self.steps == other.steps else [f"steps {self.steps} {other.steps}"])


@dataclass(frozen=True)
class Job:
    config: Config
    steps: int
    first_step: int = 0
    """Which batch comes first."""
    starts: Sequence[State | None] = (None,)
    """States to start from, one after the other in one engine; None: initial weights."""
    save_after: int = 0
    """Steps after which the state is kept as `Outcome.saved`."""
    evaluate_from: int = 0
    """Number of the first step after which a held-out batch is evaluated, always of the same shape."""
    shapes: Sequence[Shape] = (WHOLE,)
    """Of the batch of each step; the last one's goes on."""


@dataclass(frozen=True)
class Outcome:
    losses: list[float]
    norms: list[float]
    evaluations: list[float]
    loaded: State
    """The state before the first step, as the engine gives it out again."""
    first: State
    """The state after the first step: the gradient, to a factor."""
    saved: State
    """The state after `save_after` steps."""
    ended: State
    outside: dict[str, Any]


def learning_rate(step: int) -> float:
    return 1e-3 * (step + 1)


def batch(config: Config, step: int, data_rank: int, shape: Shape = WHOLE) -> Any:
    """Random tokens; row r has no target in its first r places, so that ranks have unequal numbers of them."""
    from fmscale.corpus.batch import IGNORE, batch_of

    rng = np.random.default_rng(step)
    tokens = rng.integers(0, VOCABULARY, (shape.rows, SEQ_LEN + 1), dtype=np.uint16)
    rows = rank_rows(0, shape.rows, config.parallel.dp, data_rank, MICRO_BATCH)
    masked = np.arange(SEQ_LEN)[None, :] < np.arange(shape.rows)[:, None]
    result = batch_of(rows, tokens[rows[rows >= 0]], int((~masked).sum()), seq_len=shape.seq_len)
    labels = result.labels.reshape(len(rows), SEQ_LEN).copy()
    labels[rows >= 0] = np.where(masked[rows[rows >= 0]], IGNORE, labels[rows >= 0])
    return replace(result, labels=labels.reshape(result.labels.shape))


def train(jobs: Sequence[Job], timeout_s: float = 90.0) -> list[list[Outcome]]:
    """Outcomes of each job, one for each of its starts."""
    results: dict[int, list[Outcome]] = {}
    for world in sorted({job.config.world_size for job in jobs}):
        mine = [i for i, job in enumerate(jobs) if job.config.world_size == world]
        by_rank = run_ranks(_run_jobs, world, [jobs[i] for i in mine], timeout_s=timeout_s)
        for place, i in enumerate(mine):
            results[i] = [_joined([ranks[place][start] for ranks in by_rank]) for start in range(len(jobs[i].starts))]
    return [results[i] for i in range(len(jobs))]


def _run_jobs(rank: int, world: int, jobs: Sequence[Job]) -> list[list[dict[str, Any]]]:
    return [list(_run_job(rank, job)) for job in jobs]


def _run_job(rank: int, job: Job) -> Iterator[dict[str, Any]]:
    import torch

    from fmscale.training.engine import build_engine

    topology = Topology(dp=job.config.parallel.dp, pp=job.config.parallel.pp)
    data_rank = topology.data_rank(rank)
    try:
        engine = build_engine(job.config, topology, rank, torch.device("cpu"))
        for start in job.starts:
            if start is not None:
                engine.load_fragments(lambda p, k, a, n, s=start: torch.from_numpy(s.arrays[p, k][a : a + n]))
                engine.optimizer_steps = start.steps
            result: dict[str, Any] = {"losses": [], "norms": [], "evaluations": [], "loaded": _state(engine)}
            for step in range(job.first_step, job.first_step + job.steps):
                if step == job.first_step + job.save_after:
                    result["saved"] = _state(engine)
                if step == job.first_step + 1:
                    result["first"] = _state(engine)
                shape = job.shapes[min(step, len(job.shapes) - 1)]
                output = engine.train_batch(batch(job.config, step, data_rank, shape), learning_rate(step))
                result["losses"].append(output.loss)
                result["norms"].append(output.grad_norm)
                if step >= job.evaluate_from:
                    result["evaluations"].append(engine.eval_batch(batch(job.config, 1000 + step, data_rank)))
            ended = _state(engine)
            result = {"first": ended, "saved": ended} | result
            result |= {"ended": ended, "outside": engine.state_outside_fragments()}
            yield result
        engine.close()
    except BaseException as error:
        error.add_note(label(job.config))
        raise


def _state(engine: Any) -> tuple[int, list[Any]]:
    """What this rank gives out: optimizer steps, and (param, kind, start, values, shape) of each fragment."""
    fragments = [(f.param, f.kind, f.start, f.tensor.clone().numpy(), f.shape) for f in engine.fragments()]
    return engine.optimizer_steps, fragments


def _joined(ranks: list[dict[str, Any]]) -> Outcome:
    """One outcome of all ranks', which agree on what must be the same everywhere."""
    result = dict(ranks[0])
    for key in ("losses", "norms", "evaluations", "outside"):
        # As text, in which NaN equals NaN.
        assert len({repr(rank[key]) for rank in ranks}) == 1, f"ranks differ in {key}: {[r[key] for r in ranks]}"
    for key in ("loaded", "first", "saved", "ended"):
        result[key] = _whole([rank[key] for rank in ranks])
    return Outcome(**result)


def _whole(ranks: list[tuple[int, list[Any]]]) -> State:
    """The fragments of all ranks put together: every element of every parameter once."""
    steps = ranks[0][0]
    assert all(rank[0] == steps for rank in ranks), f"ranks count other steps: {[rank[0] for rank in ranks]}"
    arrays: dict[tuple[str, str], npt.NDArray[np.float32]] = {}
    counts: dict[tuple[str, str], npt.NDArray[np.int64]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for param, kind, start, values, shape in (fragment for _, rank in ranks for fragment in rank):
        key, place = (param, kind), slice(start, start + len(values))
        assert shapes.setdefault(param, shape) == shape, f"{param} is {shape} and {shapes[param]}"
        array = arrays.setdefault(key, np.zeros(int(np.prod(shape)), np.float32))
        assert values.dtype == np.float32, f"{key} is {values.dtype}"
        assert start + len(values) <= len(array), f"{key} [{start}, {start + len(values)}) of {len(array)}"
        array[place] = values
        counts.setdefault(key, np.zeros(len(array), np.int64))[place] += 1
    for key, count in counts.items():
        assert (count == 1).all(), f"{key}: elements are given out {sorted(set(count.tolist()))} times"
    return State(steps, arrays, shapes)
