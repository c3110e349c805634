"""The reference engine against a loop that anyone can read, against itself on more ranks, and through a checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from fmscale.config import Config, ModelConfig, OptimConfig, ParallelConfig, TrainConfig
from fmscale.corpus.batch import IGNORE, Batch
from fmscale.model.decoder import Decoder, init_weights, parameter_shapes
from fmscale.model.loss import token_loss_sum
from fmscale.topology import PADDING, Topology, rank_rows
from fmscale.training.engine import KINDS, build_engine
from fmscale.training.engine_plain import PlainEngine
from fmscale.training.optim import build_optimizer, set_learning_rate
from tests.ranks import run_ranks

CPU = torch.device("cpu")
SEQ_LEN = 16


def settings(dp: int = 1, global_batch: int = 8, micro_batch: int = 2, precision: Any = "fp32", **model: Any) -> Config:
    return Config(
        model=dataclasses.replace(ModelConfig(vocab_size=200, d_model=32, n_layers=2), **model),
        parallel=ParallelConfig(dp=dp),
        train=TrainConfig(global_batch=global_batch, micro_batch=micro_batch, precision=precision, grad_clip=0.25),
        optim=OptimConfig(weight_decay=0.2),
    )


def share(config: Config, step: int, data_rank: int = 0, *, ragged: bool = False) -> Batch:
    """This rank's part of global batch `step`. Text to learn from: counting up from a random start.

    ragged: rows differ in how many targets they have, so a mean over ranks would not be the mean over targets.
    """
    train = config.train
    first = step * train.global_batch
    rows = rank_rows(first, train.global_batch, config.parallel.dp, data_rank, train.micro_batch)

    def text(row: int) -> np.ndarray:
        start = np.random.default_rng(max(row, 0)).integers(200)
        return np.asarray((start + np.arange(SEQ_LEN + 1)) % 200, np.int32)

    tokens = np.stack([text(int(row)) for row in rows])
    labels = tokens[:, 1:].copy()
    labels[rows == PADDING] = IGNORE
    targets = train.global_batch * SEQ_LEN
    if ragged:
        for labels_T, row in zip(labels, rows, strict=True):
            labels_T[: row % 5] = IGNORE
        targets -= sum(row % 5 for row in range(first, first + train.global_batch))
    positions = np.tile(np.arange(SEQ_LEN, dtype=np.int32), (len(rows), 1))
    return Batch(rows=rows, tokens=tokens[:, :-1].copy(), labels=labels, positions=positions, targets=targets)


def engine_of(config: Config, rank: int = 0) -> PlainEngine:
    engine = build_engine(config, Topology(dp=config.parallel.dp), rank, CPU)
    assert isinstance(engine, PlainEngine)
    return engine


def state_of(engine: PlainEngine) -> dict[tuple[str, str, int], torch.Tensor]:
    return {(f.param, f.kind, f.start): f.tensor.clone() for f in engine.fragments()}


def same(a: dict[Any, torch.Tensor], b: dict[Any, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def readable_loop(config: Config, steps: int, lr: float) -> list[tuple[float, float]]:
    """What an engine computes, in plain torch: mean loss over the whole batch, clip, AdamW."""
    model = Decoder(config.model)
    init_weights(model, config.model, config.train.seed)
    optimizer = build_optimizer(model.named_parameters(), config.optim)
    history = []
    for step in range(steps):
        batch = share(config, step)
        loss = token_loss_sum(model(torch.tensor(batch.tokens)), torch.tensor(batch.labels)) / batch.targets
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)
        set_learning_rate(optimizer, lr)
        optimizer.step()
        history.append((loss.item(), norm.item()))
    return history


@pytest.mark.parametrize("tied", [False, True])
def test_an_engine_step_is_the_readable_loop(tied: bool) -> None:
    config = settings(tie_embeddings=tied)
    expected = readable_loop(config, steps=5, lr=0.01)
    engine = engine_of(config)
    assert engine.eval_batch(share(config, 0)) == pytest.approx(expected[0][0], rel=1e-6)
    found = [engine.train_batch(share(config, step), lr=0.01) for step in range(5)]
    np.testing.assert_allclose([(f.loss, f.grad_norm) for f in found], expected, rtol=1e-5)
    assert expected[0][1] > config.train.grad_clip, "clipping must have had something to do"
    assert engine.optimizer_steps == 5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_are_equal_to_the_bit_and_learn(precision: str) -> None:
    config = settings(precision=precision)
    first, second = engine_of(config), engine_of(config)
    losses = [[e.train_batch(share(config, step), 0.01).loss for step in range(20)] for e in (first, second)]
    assert losses[0] == losses[1]
    assert same(state_of(first), state_of(second))
    assert losses[0][-1] < losses[0][0] - 1.0


def test_bf16_follows_fp32_with_fp32_masters() -> None:
    full, low = engine_of(settings()), engine_of(settings(precision="bf16"))
    assert same(state_of(full), state_of(low)), "both start from the same fp32 weights"
    for step in range(10):
        batch = share(settings(), step)
        assert low.train_batch(batch, 0.003).loss == pytest.approx(full.train_batch(batch, 0.003).loss, rel=0.01)
    masters = [t for (_, kind, _), t in state_of(low).items() if kind == "master"]
    assert any((t != t.bfloat16().float()).any() for t in masters), "masters keep what bfloat16 would round away"


def test_micro_batches_do_not_change_the_step() -> None:
    whole, pieces = settings(micro_batch=8), settings(micro_batch=1)
    one, many = engine_of(whole), engine_of(pieces)
    for step in range(3):
        a = one.train_batch(share(whole, step, ragged=True), 0.01)
        b = many.train_batch(share(pieces, step, ragged=True), 0.01)
        assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), rel=1e-5)


def test_only_matrices_decay() -> None:
    engine = engine_of(settings())
    before = state_of(engine)
    batch = share(settings(), 0)
    batch.labels[:] = IGNORE  # no gradient: what moves is decay alone
    engine.train_batch(batch, lr=0.1)
    shapes = parameter_shapes(settings().model)
    for (name, kind, start), after in state_of(engine).items():
        if kind == "master":
            factor = 1 - 0.1 * 0.2 if len(shapes[name]) >= 2 else 1.0
            torch.testing.assert_close(after, before[name, kind, start] * factor, rtol=1e-6, atol=0)


def test_no_clipping_where_it_is_switched_off() -> None:
    # AdamW's first update does not see the gradient's scale; its first moment is the gradient itself x (1 - beta1).
    config = settings()
    off = dataclasses.replace(config, train=dataclasses.replace(config.train, grad_clip=0.0))
    moments = {}
    for name, settings_ in (("on", config), ("off", off)):
        engine = engine_of(settings_)
        norm = engine.train_batch(share(config, 0), 0.01).grad_norm
        moments[name] = torch.cat([t for (_, kind, _), t in state_of(engine).items() if kind == "exp_avg"])
    assert moments["off"].norm().item() / 0.1 == pytest.approx(norm, rel=1e-4)
    assert moments["on"].norm().item() / 0.1 == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_continued_from_its_fragments_is_the_uninterrupted_run(precision: str) -> None:
    config = settings(precision=precision)
    engine = engine_of(config)
    for step in range(3):
        engine.train_batch(share(config, step), 0.01)
    state, steps = state_of(engine), engine.optimizer_steps
    expected = [engine.train_batch(share(config, step), 0.01) for step in range(3, 6)]

    other = engine_of(dataclasses.replace(config, train=dataclasses.replace(config.train, seed=99)))
    other.load_fragments(lambda param, kind, start, numel: state[param, kind, 0][start : start + numel])
    other.optimizer_steps = steps
    assert same(state_of(other), state)
    assert [other.train_batch(share(config, step), 0.01) for step in range(3, 6)] == expected
    assert same(state_of(other), state_of(engine))


@pytest.mark.parametrize("dp", [1, 2, 3, 7])
def test_fragments_cover_every_parameter_once_from_the_start(dp: int) -> None:
    config = settings(dp=dp, global_batch=7, micro_batch=1)
    covered = {(name, kind): 0 for name in parameter_shapes(config.model) for kind in KINDS}
    for rank in range(dp):
        for fragment in engine_of(config, rank).fragments():
            assert fragment.start == covered[fragment.param, fragment.kind], "ranges join without gap or overlap"
            assert fragment.shape == parameter_shapes(config.model)[fragment.param]
            assert fragment.tensor.dtype == torch.float32
            assert fragment.tensor.dim() == 1
            covered[fragment.param, fragment.kind] += fragment.tensor.numel()
    for (name, _), numel in covered.items():
        assert numel == int(np.prod(parameter_shapes(config.model)[name]))


def train_on_a_rank(rank: int, world: int, config: Config, steps: int) -> tuple[list[Any], Any, Any]:
    """Outputs of `steps` steps and an evaluation; the rank's own fragments; all masters of its replica."""
    torch.set_num_threads(1)
    engine = engine_of(config, rank)
    outputs: list[Any] = [engine.train_batch(share(config, s, rank, ragged=True), 0.01) for s in range(steps)]
    outputs.append(engine.eval_batch(share(config, 0, rank, ragged=True)))
    fragments = {key: tensor.numpy() for key, tensor in state_of(engine).items()}
    replica = {name: master.detach().flatten().numpy() for name, master in engine._masters.items()}
    return outputs, fragments, replica


@pytest.mark.processes
def test_three_ranks_on_a_batch_that_three_does_not_divide_are_one_rank() -> None:
    config = settings(global_batch=8, micro_batch=2)
    alone, _, _ = train_on_a_rank(0, 1, config, steps=5)
    results = run_ranks(train_on_a_rank, 3, dataclasses.replace(config, parallel=ParallelConfig(dp=3)), 5)
    for outputs, _, _ in results:
        assert outputs == results[0][0], "every rank reports the same bits"
        np.testing.assert_allclose([o.loss for o in outputs[:-1]], [o.loss for o in alone[:-1]], rtol=1e-5)
        np.testing.assert_allclose([o.grad_norm for o in outputs[:-1]], [o.grad_norm for o in alone[:-1]], rtol=1e-5)
        assert outputs[-1] == pytest.approx(alone[-1], rel=1e-5)
    owned = [item for _, fragments, _ in results for item in fragments.items()]
    for name in parameter_shapes(config.model):
        parts = sorted((start, part) for (param, kind, start), part in owned if (param, kind) == (name, "master"))
        whole = np.concatenate([part for _, part in parts])
        for _, _, replica in results:
            assert np.array_equal(whole, replica[name]), "replicas are one model, and their fragments make it up"
