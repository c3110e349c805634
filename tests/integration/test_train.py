"""Whole training runs, real ranks and real files, without Ray: what the laws say of batches, losses and checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from fmscale.config import Config, from_yaml, load, to_yaml
from fmscale.corpus.batch import Batch
from fmscale.corpus.ledger import Ledger
from fmscale.corpus.loader import LocalLoader
from fmscale.corpus.replay import replay
from fmscale.corpus.steps import StepPlan
from fmscale.errors import MachineError
from fmscale.observe.events import read_events
from fmscale.observe.failure import first_cause
from fmscale.observe.metrics import eval_series, series
from fmscale.training import block_file
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.lease import Lease
from fmscale.training.place import RankPlace
from fmscale.training.worker import run_rank
from launcher.snapshot import enter
from launcher.start import check
from tests.ranks import RankError, meeting_store, run_ranks
from tests.runs import Run

pytestmark = pytest.mark.processes

TOLERANCE = 1e-5
"""Relative, of fp32 losses between engines and numbers of ranks; see docs/engines.md."""


def config_of(root: Path, corpus: Path, name: str, *settings: str) -> Config:
    run = Run(root, name, corpus)
    return load([run.arguments()[0]], [*run.arguments()[1:], *settings])


def go(*configs: Config, make_loader: Any = LocalLoader, env: dict[str, str] | None = None) -> None:
    """Train runs of equally many ranks, one after the other in the same processes."""
    checked = [check(config) for config in configs]
    for config in checked:
        enter(config)
    texts = [to_yaml(config) for config in checked]
    run_ranks(_train, checked[0].world_size, texts, make_loader, env or {}, timeout_s=90)


def _train(rank: int, world: int, texts: list[str], make_loader: Any, env: dict[str, str]) -> None:
    dist.destroy_process_group()
    os.environ.update(env)
    for number, text in enumerate(texts):
        store = meeting_store(number, world)
        place = RankPlace(rank=rank, world=world, local_rank=rank, device="cpu", shows_progress=False, store=store)
        run_rank(from_yaml(text), place, make_loader)


def losses(config: Config) -> list[float]:
    return [line["loss"] for line in series(config.run_dir)]


def hashes(config: Config) -> list[str]:
    return [line["batch_hash"] for line in series(config.run_dir)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def plain(root: Path, words: Path) -> Config:
    """One rank, 12 steps, a checkpoint every 4."""
    config = config_of(root, words, "plain", "train.steps=12")
    go(config)
    return config


def test_batches_are_those_of_order_and_the_same_for_any_number_of_ranks(
    root: Path, words: Path, plain: Config
) -> None:
    two = config_of(root, words, "two", "train.steps=12", "parallel.dp=2")
    three = config_of(root, words, "three", "train.steps=12", "parallel.dp=3")
    go(two)
    go(three)
    computed = [record["batch_hash"] for record in replay(plain, 1, 12, dp=5)]
    assert hashes(plain) == computed
    assert hashes(two) == computed
    assert hashes(three) == computed
    assert losses(two) == pytest.approx(losses(plain), rel=TOLERANCE)
    assert losses(three) == pytest.approx(losses(plain), rel=TOLERANCE)


def test_the_learning_rate_rises_to_the_peak_and_ends_on_the_last_rate(plain: Config) -> None:
    assert (plain.schedule.warmup_steps, plain.train.steps, plain.schedule.final_lr_ratio) == (2, 12, 0.1)
    rates = {line["step"]: line["lr"] for line in series(plain.run_dir)}
    assert rates[1] == pytest.approx(plain.optim.lr / 2)  # the first update has a rate, and half of the peak
    assert rates[2] == pytest.approx(plain.optim.lr)  # the last one of the warm-up has the peak
    assert rates[7] == pytest.approx(plain.optim.lr * (1 + 0.1) / 2)  # 5 of the 10 updates of the decay
    assert rates[12] == pytest.approx(plain.optim.lr * 0.1)


def test_evaluation_and_checkpoints_change_no_bit(root: Path, words: Path, plain: Config) -> None:
    quiet = config_of(root, words, "quiet", "train.steps=12", "eval.every_steps=0", "checkpoint.every_steps=0")
    busy = config_of(root, words, "busy", "train.steps=12", "eval.every_steps=1", "checkpoint.every_steps=1")
    go(quiet, busy)
    assert losses(quiet) == losses(busy) == losses(plain)
    assert [line["step"] for line in eval_series(quiet.run_dir)] == [12]
    assert [line["step"] for line in eval_series(busy.run_dir)] == list(range(1, 13))


LEGS = [
    ("engine=plain", "parallel.dp=1"),
    ("engine=zero", "parallel.zero=1", "parallel.dp=2"),
    ("engine=pipe", "parallel.zero=0", "parallel.dp=1", "parallel.pp=2"),
    ("engine=zero", "parallel.zero=3", "parallel.dp=4"),
    ("engine=pipe", "parallel.zero=1", "parallel.dp=2", "parallel.pp=2"),
    ("engine=zero", "parallel.zero=2", "parallel.dp=1"),
]


def test_one_run_through_every_engine_and_1_2_and_4_ranks(root: Path, words: Path, plain: Config) -> None:
    """Each leg trains two steps from the checkpoint that another engine on other ranks wrote."""
    for number, leg in enumerate(LEGS):
        go(config_of(root, words, "relay", f"train.steps={2 * number + 2}", "schedule.warmup_steps=2", *leg))
    relay = config_of(root, words, "relay")
    assert hashes(relay) == hashes(plain)
    # The schedule ends with each leg, so rates differ from the plain run's: two plain runs in the same legs compare.
    for number in range(len(LEGS)):
        go(config_of(root, words, "plain-legs", f"train.steps={2 * number + 2}", "schedule.warmup_steps=2"))
    assert losses(relay) == pytest.approx(losses(config_of(root, words, "plain-legs")), rel=TOLERANCE)


class WrongRank(LocalLoader):
    """Hands ranks each other's rows."""

    def __init__(self, config: Config, data: Any, data_rank: int) -> None:
        super().__init__(config, data, 1 - data_rank)


class WrongTokens(LocalLoader):
    """Hands ranks each other's tokens under their own row numbers."""

    def __init__(self, config: Config, data: Any, data_rank: int) -> None:
        super().__init__(config, data, data_rank)
        self._other = LocalLoader(config, data, 1 - data_rank)

    def batches(self, first_row: int) -> Iterator[Batch]:
        for own, other in zip(super().batches(first_row), self._other.batches(first_row), strict=False):
            yield replace(other, rows=own.rows)

    def close(self) -> None:
        super().close()
        self._other.close()


def test_ranks_that_are_handed_each_others_rows_are_found(root: Path, words: Path, plain: Config) -> None:
    with pytest.raises(RankError, match="was handed rows"):
        go(config_of(root, words, "wrong-rank", "parallel.dp=2"), make_loader=WrongRank)
    swapped = config_of(root, words, "wrong-tokens", "train.steps=3", "parallel.dp=2")
    go(swapped, make_loader=WrongTokens)
    assert not set(hashes(swapped)) & set(hashes(plain))


def test_a_damaged_checkpoint_is_passed_over_loudly(root: Path, words: Path, plain: Config) -> None:
    config = config_of(root, words, "damaged", "train.steps=8")
    go(config)
    newest = CheckpointStore(config.run_dir / "checkpoints").list()[-1].name
    file = config.run_dir / "checkpoints" / newest / "rank-00000.safetensors"
    flip(file)
    go(replace(config, train=replace(config.train, steps=12)))
    reports = [event["text"] for event in read_events(config.run_dir) if event["kind"] == "checkpoint_passed_over"]
    assert len(reports) == 1
    assert newest in reports[0]
    assert [line["step"] for line in series(config.run_dir) if line["term"] == 2] == list(range(5, 13))
    assert hashes(config) == hashes(plain)


def test_without_a_valid_checkpoint_a_run_does_not_start_over(root: Path, words: Path) -> None:
    config = config_of(root, words, "all-damaged", "train.steps=4")
    go(config)
    for marker in config.run_dir.glob("checkpoints/*/COMMIT.json"):
        marker.write_text("{}")
    with pytest.raises(RankError, match="no checkpoint of this run can be believed"):
        go(replace(config, train=replace(config.train, steps=6)))


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(root: Path, words: Path, plain: Config) -> None:
    config = config_of(root, words, "full-disk", "train.steps=8", "parallel.dp=2")
    go(config, env={"FAULTS": "ckpt.mid_rank/1:enospc"})
    remarks = [event["text"] for event in read_events(config.run_dir) if event["kind"] == "remark"]
    assert len(remarks) == 2, "the parts of the failed save are gone before the next one cleans up"
    assert remarks[1] == "step-00000008.t0001 stands: checkpoints can be written again"
    assert "no checkpoint at step 4, training goes on: a checkpoint could not be written" in remarks[0]
    assert [commit.step for commit in CheckpointStore(config.run_dir / "checkpoints").list()] == [8]
    assert hashes(config) == hashes(plain)[:8]
    last = config_of(root, words, "full-disk-at-the-end", "train.steps=4")
    with pytest.raises(RankError, match="a checkpoint could not be written"):
        go(last, env={"FAULTS": "ckpt.mid_rank:enospc"})
    assert os.listdir(last.run_dir / "checkpoints") == []


class LooksForTheFailedSave(LocalLoader):
    """Asks, when the next checkpoint is committed, whether anything is left of that of step 4."""

    def __init__(self, config: Config, data: Any, data_rank: int) -> None:
        super().__init__(config, data, data_rank)
        store_commit, tree = CheckpointStore.commit, config.run_dir / "checkpoints"

        def commit(self: CheckpointStore, step: int, *args: Any, **more: Any) -> Any:
            assert step == 4 or not list(tree.glob("step-00000004*")), "the disk has its room back at once"
            return store_commit(self, step, *args, **more)

        CheckpointStore.commit = commit  # type: ignore[method-assign]


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_failed_save_gives_the_disk_its_room_back_at_once(
    root: Path, words: Path, plain: Config, asynchronous: str
) -> None:
    name = f"full-at-commit-{asynchronous}"
    config = config_of(root, words, name, "train.steps=8", "parallel.dp=2", f"checkpoint.asynchronous={asynchronous}")
    go(config, make_loader=LooksForTheFailedSave, env={"FAULTS": "ckpt.before_commit:enospc"})
    remarks = [event["text"] for event in read_events(config.run_dir) if event["kind"] == "remark"]
    assert "no checkpoint at step 4, training goes on: a checkpoint could not be written" in remarks[0]
    assert "COMMIT.json" in remarks[0]
    assert [commit.step for commit in CheckpointStore(config.run_dir / "checkpoints").list()] == [8]
    assert hashes(config) == hashes(plain)[:8]
    assert losses(config) == losses(config_of(root, words, "full-at-commit-true"))


class BadDisk(LocalLoader):
    """A bit of rank 1's part of step 8 changes on the disk before it is read back."""

    def __init__(self, config: Config, data: Any, data_rank: int) -> None:
        super().__init__(config, data, data_rank)
        read_back = block_file._read_back

        def damaged(path: Path, *args: Any) -> str:
            if "step-00000008" in str(path) and "rank-00001" in path.name:
                flip(path)
            return read_back(path, *args)

        block_file._read_back = damaged


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def test_a_checkpoint_that_does_not_read_back_is_no_checkpoint_and_training_goes_on(
    root: Path, words: Path, plain: Config
) -> None:
    """Each rank reads its own part; the next save has the one before as its parent, and removes what is too many."""
    config = config_of(root, words, "bad-disk", "train.steps=16", "parallel.dp=2", "checkpoint.keep=2")
    go(config, make_loader=BadDisk)
    remarks = [event["text"] for event in read_events(config.run_dir) if event["kind"] == "remark"]
    assert "no checkpoint at step 8, training goes on: a checkpoint could not be written" in remarks[0]
    assert "rank-00001.safetensors" in remarks[0]
    assert "other bytes when they were read again" in remarks[0]
    assert remarks[1:] == ["step-00000012.t0001 stands: checkpoints can be written again"]
    commits = CheckpointStore(config.run_dir / "checkpoints").list()
    assert [(commit.step, commit.parent) for commit in commits] == [
        (12, "step-00000004.t0001"),
        (16, "step-00000012.t0001"),
    ]
    assert hashes(config)[:12] == hashes(plain)
    last = config_of(root, words, "bad-disk-at-the-end", "train.steps=8", "parallel.dp=2", "checkpoint.keep=2")
    with pytest.raises(RankError, match=r"MachineError: a checkpoint could not be written(?s:.*)other bytes"):
        go(last, make_loader=BadDisk)


class FailsTwice(LocalLoader):
    """Fails at its first batch, and again when it is closed, after a look at what the run has been told."""

    def __init__(self, config: Config, data: Any, data_rank: int) -> None:
        super().__init__(config, data, data_rank)
        self._run_dir = config.run_dir

    def batches(self, first_row: int) -> Iterator[Batch]:
        raise ValueError("the cause")

    def close(self) -> None:
        super().close()
        cause = first_cause(self._run_dir, "tested")
        (self._run_dir / "known-at-close").write_text(cause.message if cause else "nothing")
        raise KeyError("a consequence")


def test_the_cause_is_written_down_before_anything_is_closed(root: Path, words: Path) -> None:
    config = config_of(root, words, "fails-twice")
    with pytest.raises(RankError, match="a consequence"):
        go(config, make_loader=FailsTwice, env={"FMSCALE_INCARNATION": "tested"})
    assert (config.run_dir / "known-at-close").read_text() == "the cause"
    cause = first_cause(config.run_dir, "tested")
    assert cause is not None
    assert cause.message == "the cause"


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(root: Path, words: Path) -> None:
    config = config_of(root, words, "diverged", "optim.lr=1e30", "train.grad_clip=0", "checkpoint.every_steps=1")
    with pytest.raises(RankError, match="step 2 has no finite loss and gradient"):
        go(config)
    assert [line["step"] for line in series(config.run_dir)] == [1]
    assert [commit.step for commit in CheckpointStore(config.run_dir / "checkpoints").list()] == [1]


def test_a_crash_after_a_roll_back_does_not_bring_the_abandoned_branch_back(root: Path, words: Path) -> None:
    config = config_of(root, words, "rolled-back", "train.steps=12")
    go(config)
    names = [commit.name for commit in CheckpointStore(config.run_dir / "checkpoints").list()]
    longer = replace(config, train=replace(config.train, steps=14))
    with pytest.raises(RankError, match="injected"):
        go(longer, env={"FMSCALE_ROLL_BACK": names[0], "FAULTS": "step.6:raise"})
    go(longer)
    assert [record.parent for record in Lease(config.run_dir).terms()] == [None, names[0], names[0]]
    terms = {line["step"]: line["term"] for line in series(config.run_dir)}
    assert terms == {step: 1 if step <= 4 else 3 for step in range(1, 15)}


def test_a_roll_back_to_what_is_damaged_or_not_there_says_so(root: Path, words: Path) -> None:
    config = config_of(root, words, "rolled-back-badly", "train.steps=12", "parallel.dp=2")
    go(config)
    store = CheckpointStore(config.run_dir / "checkpoints")
    first, second, _ = [commit.name for commit in store.list()]
    flip(store.root / first / "rank-00001.safetensors")
    (store.root / second / "COMMIT.json").write_text("{}")
    for name in (first, second):
        with pytest.raises(RankError, match=rf"the checkpoint that was asked for is damaged(?s:.*)found: {name}"):
            go(config, env={"FMSCALE_ROLL_BACK": name})
    with pytest.raises(RankError, match=r"this run has no checkpoint of that name(?s:.*)found: step-00000009\.t0001"):
        go(config, env={"FMSCALE_ROLL_BACK": "step-00000009.t0001"})
    assert [record.term for record in Lease(config.run_dir).terms()] == [1]


def _heads(rank: int, world: int) -> str:
    import torch.distributed as dist

    from fmscale.training.worker import _require_one_ledger

    def seen(rows: int) -> Any:
        ledger = Ledger().append("skip", {"rows": rows}, from_row=0, rows_consumed=0, steps=StepPlan.constant(8, 8))
        return SimpleNamespace(ledger=ledger)

    place = RankPlace(rank=rank, world=world, local_rank=rank, device="cpu")
    _require_one_ledger(seen(1), place, dist.group.WORLD)
    with pytest.raises(MachineError, match=r"the ranks do not see the same edit ledger(.*\n)*.*on rank 1"):
        _require_one_ledger(seen(1 + rank), place, dist.group.WORLD)
    return "told"


def test_ranks_that_see_other_ledgers_do_not_train() -> None:
    """As a network file system may show them one, just after an entry was written on another node."""
    assert run_ranks(_heads, 2) == ["told", "told"]


def test_a_flipped_byte_in_a_shard_ends_training_before_its_use(root: Path, tmp_path: Path, words: Path) -> None:
    shutil.copytree(words, tmp_path / "copy")
    config = config_of(root, tmp_path / "copy", "bad-shard", "train.steps=12")
    shard = next((tmp_path / "copy").glob("train-*.tar"))
    raw = bytearray(shard.read_bytes())
    for place in range(1500, len(raw) - 10240, 2048):  # each chunk of 1,024 tokens has one; the tar's end has none
        raw[place] ^= 0x10
    shard.write_bytes(raw)
    with pytest.raises(RankError, match=r"DamagedChunk: chunk \d+ is damaged"):
        go(config)
    assert losses(config) == []


def test_another_seed_is_another_run(root: Path, words: Path, plain: Config) -> None:
    other = config_of(root, words, "other-seed", "train.steps=2", "data.seed=1")
    go(other)
    assert not set(hashes(other)) & set(hashes(plain))
    assert list(islice(losses(other), 1)) == pytest.approx(losses(plain)[:1], rel=0.05)  # the same initial weights
