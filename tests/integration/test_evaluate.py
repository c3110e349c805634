"""`fmscale evaluate`: the numbers are training's own, however many processes; a run is read and never touched."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from typer.testing import CliRunner

from fmscale.adapt.evaluate import ROUND, Score
from fmscale.config import Config, from_yaml
from fmscale.corpus.shards import Corpus
from fmscale.errors import CheckpointError, ConfigError, DataError
from fmscale.observe.metrics import eval_series
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.lease import Lease
from launcher import evaluation
from launcher.cli import app
from launcher.evaluation import config_to_evaluate, evaluate_run
from launcher.snapshot import enter
from launcher.start import check
from tests.corpora import make_corpus
from tests.integration.test_train import config_of, go
from tests.ranks import RankError, meeting_store, run_ranks
from tests.word_corpora import corpus, texts

pytestmark = pytest.mark.processes


@contextlib.contextmanager
def same_environment() -> Iterator[None]:
    """An evaluation makes a rank of its process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    corpus(root / "other", texts(100, first=3000), texts(90, first=2000), chunk_tokens=512)
    return root


@pytest.fixture(scope="module")
def plain(root: Path, words: Path) -> Config:
    """12 steps in fp32, each fourth one evaluated and saved."""
    config = config_of(root, words, "plain", "train.steps=12", "eval.every_steps=4")
    go(config)
    return config


def fmscale(*arguments: object) -> str:
    """What `fmscale evaluate` prints; what a user would read as an error is raised here."""
    with same_environment():
        done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def _evaluate(rank: int, world: int, run_dir: Path, asked: list[tuple[str, int | None]]) -> list[Any]:
    dist.destroy_process_group()
    os.environ["LOCAL_WORLD_SIZE"] = str(world)
    records = []
    for number, (checkpoint, rows) in enumerate(asked):
        config = config_to_evaluate(run_dir, [], rows)
        found = evaluate_run(config, checkpoint, {}, lambda timeout_s, n=number: meeting_store(n, world))  # type: ignore[misc]
        assert (found is None) == (rank > 0)
        records.append(found and found.record)
    return records


def by_ranks(world: int, run_dir: Path, *asked: tuple[str, int | None]) -> list[dict[str, Any]]:
    """The record of each evaluation that is asked for: a checkpoint, and how many rows."""
    return run_ranks(_evaluate, world, run_dir, list(asked))[0]  # type: ignore[no-any-return]


# --- the numbers


def test_it_is_what_training_measured_on_any_number_of_ranks(plain: Config) -> None:
    """Also where some of them have no row: they take part, and wait for nobody."""
    measured = {line["step"]: line for line in eval_series(plain.run_dir)}
    commits = CheckpointStore(plain.run_dir / "checkpoints").list()
    assert sorted(measured) == [commit.step for commit in commits] == [4, 8, 12]
    asked = [(commits[0].name, None), (commits[2].name, None), ("", 1), ("", 2), ("", 5)]
    found = [by_ranks(world, plain.run_dir, *asked) for world in (1, 2, 3)]
    for world, records in enumerate(found, start=1):
        for commit, record in zip(commits[::2], records[:2], strict=True):
            total, line = record["total"], measured[commit.step]
            assert (record["evaluated"]["step"], record["by"]["processes"]) == (commit.step, world)
            assert (total["rows"], total["targets"]) == (plain.eval.rows, line["heldout_tokens"])
            assert total["loss"] == pytest.approx(line["heldout_loss"], rel=1e-7)
            assert total["bits_per_byte"] == pytest.approx(line["heldout_bits_per_byte"], rel=1e-7)
            assert record["sources"] == {"words": total}
        assert [record["total"]["rows"] for record in records[2:]] == [1, 2, 5]
        for record, alone in zip(records, found[0], strict=True):
            assert record["total"] == pytest.approx(alone["total"], rel=1e-6)


def test_several_sources_in_bf16_within_documents(root: Path, words: Path) -> None:
    """Rows are shared out source by source, in more than one round of all ranks: still the trainer's numbers."""
    settings = [f"data.sources.other.corpus={root / 'other'}", "model.attention=document", "train.precision=bf16"]
    config = config_of(root, words, "mixed", "train.steps=4", "eval.rows=0", *settings)
    go(config)
    (line,) = eval_series(config.run_dir)
    (found,) = by_ranks(2, config.run_dir, ("", None))
    sources, total = found["sources"], found["total"]
    assert total["loss"] == pytest.approx(line["heldout_loss"], rel=1e-6)
    assert total["targets"] == line["heldout_tokens"] == sum(source["targets"] for source in sources.values())
    assert total["bits_per_byte"] == pytest.approx(line["heldout_bits_per_byte"], rel=1e-6)
    held = {name: Corpus.open(path, "heldout") for name, path in (("words", words), ("other", root / "other"))}
    assert {name: source["rows"] for name, source in sources.items()} == {
        name: corpus.chunks * (corpus.chunk_tokens // 64) for name, corpus in held.items()
    }
    assert all(source["rows"] > 2 * ROUND * config.train.micro_batch for source in sources.values())
    assert found["evaluated"]["precision"] == "bf16"
    # One source at a time as another corpus: the same rows, the same sums.
    alone = json.loads(fmscale(config.run_dir, "--corpus", f"it={root / 'other'}", "--json"))
    assert alone["sources"]["it"] == pytest.approx(sources["other"], rel=1e-6)
    in_fp32 = json.loads(fmscale(config.run_dir, "train.precision=fp32", "--json"))
    assert in_fp32["total"]["loss"] == pytest.approx(total["loss"], rel=1e-2)
    assert in_fp32["total"]["loss"] != total["loss"]


def test_what_is_no_number_is_null() -> None:
    empty, diverged = Score().to_json(), Score(1, 2, 4, 2e6).to_json()
    assert (empty["rows"], empty["loss"], empty["perplexity"], empty["bits_per_byte"]) == (0, None, None, None)
    assert (diverged["loss"], diverged["perplexity"]) == (1e6, None)
    assert diverged["bits_per_byte"] == pytest.approx(2e6 / 4 / math.log(2))


# --- the run, and what is left in it


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_run_under_way_is_read_and_only_the_result_is_added(plain: Config) -> None:
    shutil.rmtree(plain.run_dir / "evaluations", ignore_errors=True)
    with Lease(plain.run_dir).held():
        before = files(plain.run_dir)
        table = fmscale(plain.run_dir)
        first = files(plain.run_dir / "evaluations")
        record = json.loads(fmscale(plain.run_dir, "--json"))
        after = files(plain.run_dir)
    ((name, content),) = first.items()
    assert after == before | {f"evaluations/{name}": content}, "the same again is the same file"
    assert json.loads(content) == record
    (corpus_of_run,) = record["evaluated"].pop("corpora")
    heldout = Corpus.open(plain.data.sources["words"].corpus, "heldout")
    assert corpus_of_run == {"name": "words", "content_hash": heldout.content_hash}
    newest = CheckpointStore(plain.run_dir / "checkpoints").list()[-1]
    assert record["evaluated"] == {
        "checkpoint": newest.name,
        "commit_hash": newest.commit_hash,
        "step": 12,
        "split": "heldout",
        "tokenizer": heldout.manifest.tokenizer["fingerprint"],
        "rows": 16,
        "seq_len": 64,
        "precision": "fp32",
    }
    assert name.startswith(newest.name)
    loss, perplexity, bits = (record["total"][key] for key in ("loss", "perplexity", "bits_per_byte"))
    shown = [line.split() for line in table.splitlines()]
    assert shown[1] == ["source", "rows", "targets", "loss", "perplexity", "bits/byte"]
    assert shown[2] == ["words", "16", "1,024", f"{loss:.4f}", f"{perplexity:.2f}", f"{bits:.4f}"]
    assert shown[3] == ["total", *shown[2][1:]]
    assert shown[4] == ["->", str(plain.run_dir / "evaluations" / name)]


def test_under_torchrun_one_rank_tells_the_result(plain: Config) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "launcher.cli"]
    done = subprocess.run(
        [*torchrun, "evaluate", str(plain.run_dir), "--json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["by"] == {"processes": 2, "device": "cpu"}
    assert record["total"]["loss"] == pytest.approx(eval_series(plain.run_dir)[-1]["heldout_loss"], rel=1e-7)


# --- what is not believed


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 4] ^= 1  # among the weights, which come first
    file.write_bytes(raw)


@pytest.fixture
def copied(plain: Config, tmp_path: Path) -> Path:
    """The run, for a test that damages it; elsewhere, which is no matter."""
    return Path(shutil.copytree(plain.run_dir, tmp_path / "copied"))


def test_a_damaged_newest_checkpoint_is_passed_over_and_a_named_one_refused(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "TELL_EVERY_S", 0.0)
    _, older, newest = (commit.name for commit in CheckpointStore(copied / "checkpoints").list())
    flip(copied / "checkpoints" / newest / "rank-00000.safetensors")
    with same_environment():
        found = evaluate_run(config_to_evaluate(copied, [], None), "", {})
    assert found is not None
    assert found.record["evaluated"]["checkpoint"] == older
    told = capsys.readouterr().err
    assert f"checkpoint {newest} is passed over" in told
    assert "evaluated 16 of 16 rows" in told, "how far it is"
    with pytest.raises(CheckpointError, match=f"the checkpoint that was asked for is damaged(?s:.*){newest}"):
        fmscale(copied, newest)
    with pytest.raises(CheckpointError, match=r"no checkpoint of that name(?s:.*)step-00000009\.t0001"):
        fmscale(copied, "step-00000009.t0001")
    for name in CheckpointStore(copied / "checkpoints").list():
        flip(copied / "checkpoints" / name.name / "rank-00000.json")
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be believed"):
        fmscale(copied)
    assert "checkpoint_passed_over" not in (copied / "events.jsonl").read_text(), "the run's own events are not ours"


def test_damaged_text_ends_every_rank_though_one_alone_reads_it(root: Path, plain: Config, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(plain.data.sources["words"].corpus, tmp_path / "words"))
    heldout = Corpus.open(moved, "heldout")
    assert heldout.chunks > 1
    (shard,) = moved.glob("heldout-*.tar")
    raw = bytearray(shard.read_bytes())
    raw[raw.index(heldout.tokens(0).tobytes()) + 9] ^= 1  # the first of its rows are rank 0's
    shard.chmod(0o644)
    shard.write_bytes(raw)
    copied = Path(shutil.copytree(plain.run_dir, tmp_path / "run"))
    text = (copied / "config.yaml").read_text().replace(plain.data.sources["words"].corpus, str(moved))
    (copied / "config.yaml").write_text(text)
    assert from_yaml(text).data.sources["words"].corpus == str(moved)
    told = run_ranks(_told_by, 2, copied)
    assert told[0] == told[1]
    assert "chunk 0 is damaged" in told[1]


def _told_by(rank: int, world: int, run_dir: Path) -> str:
    try:
        _evaluate(rank, world, run_dir, [("", None)])
    except DataError as error:
        return str(error)
    raise RankError("it was evaluated")


# --- mistakes


@pytest.fixture(scope="module")
def foreign(root: Path) -> Path:
    """Corpora that cannot be used: another tokenizer, nothing held out, chunks too short."""
    make_corpus(root / "tokenizer")
    corpus(root / "all-trained", texts(100), chunk_tokens=512)
    corpus(root / "short", texts(100), texts(90, first=2000), chunk_tokens=32)
    return root


MISTAKES: list[tuple[list[str], type[Exception], str]] = [
    (["--rows", "0"], ConfigError, r"--rows is too small(?s:.*)found: 0(?s:.*)eval\.rows=0"),
    (["--rows", "-3"], ConfigError, r"--rows is too small(?s:.*)found: -3"),
    (["step-00000004.t0001", "step-00000008.t0001"], ConfigError, "one checkpoint is evaluated at a time"),
    (["--corpus", "words"], ConfigError, r"--corpus takes a name and a directory(?s:.*)found: words"),
    (["--corpus", "=ROOT/other"], ConfigError, "--corpus takes a name and a directory"),
    (["--corpus", "a=ROOT/other", "--corpus", "a=ROOT/other"], ConfigError, "each name once"),
    (["--corpus", "a=ROOT/nowhere"], DataError, "ROOT/nowhere"),
    (["--corpus", "a=ROOT/tokenizer"], ConfigError, r"different tokenizers(?s:.*)--corpus a: "),
    (["--corpus", "a=ROOT/short"], ConfigError, "a row does not fit into a chunk of source `--corpus a`"),
    (["--corpus", "a=ROOT/all-trained"], DataError, r"nothing to evaluate on(?s:.*)ROOT/all-trained"),
    (
        ["data.sources.nope.corpus=ROOT/other"],
        ConfigError,
        r"as it was trained(?s:.*)data\.sources\.nope\.weight: absent",
    ),
    (["model.d_model=64"], ConfigError, r"as it was trained(?s:.*)model\.d_model: 32 -> 64"),
    (["train.micro_batch=0"], ConfigError, r"train\.micro_batch is too small"),
    (["data.sources.words.corpus=ROOT/other"], CheckpointError, "was trained on another order of rows"),
]


@pytest.mark.parametrize(("arguments", "kind", "words_of_it"), MISTAKES)
def test_a_mistake_says_what_to_do(
    arguments: list[str], kind: type[Exception], words_of_it: str, plain: Config, foreign: Path
) -> None:
    shutil.rmtree(plain.run_dir / "evaluations", ignore_errors=True)
    with pytest.raises(kind, match=words_of_it.replace("ROOT", str(foreign))) as caught:
        fmscale(plain.run_dir, *(word.replace("ROOT", str(foreign)) for word in arguments))
    assert "do: " in str(caught.value)
    assert list((plain.run_dir / "evaluations").glob("*")) == []


def test_a_run_that_is_not_there_or_has_trained_nothing(root: Path, words: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for run in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(ConfigError, match=rf"no such run(?s:.*)config\.yaml(?s:.*){run}"):
            fmscale(run)
    config = check(config_of(root, words, "begun"))
    enter(config)
    with pytest.raises(CheckpointError, match="this run has no checkpoint yet"):
        fmscale(config.run_dir)
