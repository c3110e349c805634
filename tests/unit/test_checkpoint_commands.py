"""`fmscale checkpoint`: lists, tells all damage, finds every difference, removes what may go and never what may not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fmscale.config import Config, TrainConfig, to_yaml
from fmscale.errors import CheckpointError, ConfigError, MachineError, RunHeldError
from fmscale.training import checkpoint_diff, checkpoint_export
from fmscale.training.checkpoint_diff import diff
from fmscale.training.checkpoint_export import export_deepspeed
from fmscale.training.checkpoint_format import KINDS, MARKER, Commit
from fmscale.training.checkpoint_reader import CheckpointReader
from fmscale.training.checkpoint_survey import survey
from fmscale.training.lease import Lease
from launcher.cli import app
from tests.checkpoints import SHAPES, Piece, assert_holds, deal, save, start, store_of, two_checkpoints, values


def fmscale(*arguments: object) -> tuple[int, str]:
    """Exit code and standard output; what a user would read as an error is raised here."""
    done = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def run_of(path: Path) -> Path:
    (path / "config.yaml").parent.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(to_yaml(Config()))
    return path


def state(config: Config, **more: Any) -> dict[str, Any]:
    return {"config": to_yaml(config), "engine": config.engine, "optimizer_steps": 10, "ledger": [], **more}


def saved(run_dir: Path, world: int, content: dict[str, Any], changes: dict[tuple[str, str, int], float]) -> Commit:
    """Step 10; `changes`: (param, kind, index) -> another value there."""
    term, store = start(run_of(run_dir)), store_of(run_dir)
    for rank, part in enumerate(deal(10, world, {"embedding": [5, 11], "head": list(range(world))})):
        for piece in part:
            for (param, kind, index), value in changes.items():
                if (param, kind) == (piece.param, piece.kind) and 0 <= index - piece.start < len(piece.tensor):
                    piece.tensor[index - piece.start] = value
        store.write_rank(10, term, rank, part)
    return store.commit(10, term, world, 40, None, content)


def reader(run_dir: Path) -> CheckpointReader:
    (commit,) = store_of(run_dir).candidates()
    return store_of(run_dir).open(commit)


# --- list


def test_a_list_says_what_is_there_and_how_far_it_is(tmp_path: Path) -> None:
    config = Config(train=TrainConfig(steps=40))
    commit = saved(tmp_path, 3, state(config), {})
    directory = tmp_path / "checkpoints" / commit.name
    os.utime(directory / MARKER, (time.time() - 7300,) * 2)
    (row,) = json.loads(fmscale("list", tmp_path, "--json")[1])
    assert (row["name"], row["step"], row["term"], row["rows"], row["world"]) == (commit.name, 10, 1, 40, 3)
    assert (row["engine"], row["progress"], row["resumable"], row["parent"]) == (config.engine, 0.25, True, None)
    assert row["bytes"] == sum(path.stat().st_size for path in directory.iterdir())
    assert 7299 < row["age_s"] < 7400
    text = fmscale("list", tmp_path)[1]
    assert "step 10 (25%)  term 1  rows 40" in text
    assert "2 hours ago  <- the next start goes on from here" in text


# --- verify


def test_all_damage_is_told_not_the_first_alone(tmp_path: Path) -> None:
    commit = save(run_of(tmp_path), 10, start(tmp_path), None, world=4)
    directory = tmp_path / "checkpoints" / commit.name
    assert survey(directory) == []
    for name, at in (("rank-00000.safetensors", -1), ("rank-00002.json", 40)):
        raw = bytearray((directory / name).read_bytes())
        raw[at] ^= 1
        (directory / name).write_bytes(raw)
    (directory / "rank-00003.safetensors").unlink()
    (directory / "rank-00004.json").write_text("{}")
    wrong = survey(directory)
    assert len(wrong) == 5, wrong
    for name, words in [
        ("rank-00000.safetensors", "xxh3_128"),
        ("rank-00002.json", "xxh3_128"),
        ("rank-00002.safetensors", "cannot be checked: its hash stands in rank-00002.json"),
        ("rank-00003.safetensors", "No such file"),
        ("rank-00004.json", "does not belong there"),
    ]:
        assert sum(name in line and words in line for line in wrong) == 1, (name, wrong)
    with pytest.raises(CheckpointError, match="1 checkpoints do not hold"):
        fmscale("verify", tmp_path)
    (directory / MARKER).write_bytes(b"{}")
    assert len(survey(directory)) > 3  # the ranks' files are still held against their own JSONs
    assert any(MARKER in line for line in survey(directory))


def test_verify_counts_every_byte_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    commit = save(run_of(tmp_path), 10, start(tmp_path), None)
    directory, read = tmp_path / "checkpoints" / commit.name, []
    survey(directory, read.append)
    assert sum(read) == sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    assert fmscale("verify", tmp_path, commit.name) == (0, f"{commit.name}: every byte holds\n")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        fmscale("verify", tmp_path, "step-00000011.t0001")


# --- diff


@settings(max_examples=12, deadline=None)
@given(data=st.data(), worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_a_diff_is_numpys_whoever_wrote_the_two(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, worlds: tuple[int, int]
) -> None:
    root = tmp_path_factory.mktemp("diff")
    places = [(param, kind, i) for param in SHAPES for kind in KINDS for i in range(len(values(param, kind, 10)))]
    odd = st.one_of(st.floats(width=32), st.just(float("nan")))
    changes = data.draw(st.dictionaries(st.sampled_from(places), odd, max_size=6))
    config = Config()
    saved(root / "a", worlds[0], state(config), {})
    saved(root / "b", worlds[1], state(config), changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_diff, "BLOCK", data.draw(st.integers(3, 30)))
        found = diff(reader(root / "a"), reader(root / "b"))
    expected = set()
    for param in SHAPES:
        for kind in KINDS:
            a = values(param, kind, 10).numpy()
            b = a.copy()
            for (p, k, i), value in changes.items():
                if (p, k) == (param, kind):
                    b[i] = value
            where = np.flatnonzero(a.view(np.int32) != b.view(np.int32))
            if len(where):
                expected.add((param, kind))
                (t,) = [t for t in found.tensors if (t.param, t.kind) == (param, kind)]
                assert (t.elements, t.of, t.first) == (len(where), len(a), where[0])
                x, y = a[where].astype(np.float64), b[where].astype(np.float64)
                both = np.isfinite(y)
                gap = np.abs(x - y)[both]
                assert t.not_finite == np.count_nonzero(~both)
                assert t.max_abs == max(gap, default=0)
                assert t.max_rel == max(gap / np.maximum(np.abs(x), np.abs(y))[both], default=0)
    assert {(t.param, t.kind) for t in found.tensors} == expected
    assert found.equal == (not expected)
    assert ("world" in found.remarks) == (worlds[0] != worlds[1])
    shutil.rmtree(root)


def test_a_diff_names_settings_steps_ledger_and_order(tmp_path: Path) -> None:
    config = Config(train=TrainConfig(steps=40))
    other = Config(train=TrainConfig(steps=50, seed=7), engine="zero")
    commit = saved(tmp_path / "a", 1, state(config, order_fingerprint="x"), {})
    entry = {"seq": 0, "kind": "skip"}
    saved(tmp_path / "b", 2, state(other, order_fingerprint="y", ledger=[entry], optimizer_steps=11), {})
    found = diff(reader(tmp_path / "a"), reader(tmp_path / "b"))
    assert found.settings == {"train.seed": f"{config.train.seed} -> 7"}
    assert found.numbers.keys() == {"optimizer_steps", "order_fingerprint", "ledger"}
    assert found.numbers["optimizer_steps"] == "10 -> 11"
    assert "0 entries, the last: None -> 1 entries" in found.numbers["ledger"]
    assert found.remarks.items() >= {"train.steps": "40 -> 50", "world": "1 -> 2"}.items()
    directories = [tmp_path / run / "checkpoints" / commit.name for run in "ab"]
    code, text = fmscale("diff", *directories)
    assert (code, text.splitlines()[-1]) == (1, "they differ")
    assert "train.seed: " in text
    assert fmscale("diff", directories[0], directories[0]) == (0, "they are equal\n")
    assert json.loads(fmscale("diff", *directories, "--json")[1])["settings"] == found.settings


def test_a_diff_names_parameters_that_one_lacks_or_has_in_another_shape(tmp_path: Path) -> None:
    for run, shapes in (("a", {"p": (2, 3), "q": (4,)}), ("b", {"p": (3, 2), "r": (4,)})):
        term, store = start(run_of(tmp_path / run)), store_of(tmp_path / run)
        parts = [
            Piece(name, kind, 0, torch.ones(int(np.prod(shape))), shape)
            for name, shape in shapes.items()
            for kind in KINDS
        ]
        store.write_rank(10, term, 0, parts)
        store.commit(10, term, 1, 40, None, {})
    found = diff(reader(tmp_path / "a"), reader(tmp_path / "b"))
    assert found.missing == {"p": "[2, 3] -> [3, 2]", "q": "[4] -> absent", "r": "absent -> [4]"}
    assert not found.equal


def test_two_steps_of_a_run_differ_and_a_damaged_one_is_not_compared(tmp_path: Path) -> None:
    old, new = two_checkpoints(run_of(tmp_path))
    code, text = fmscale("diff", tmp_path, old.name, new.name)
    assert code == 1
    assert "step: 10 -> 20" in text
    assert "embedding (exp_avg): 21 of 21 elements" in text
    file = tmp_path / "checkpoints" / new.name / "rank-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors"):
        fmscale("diff", tmp_path, old.name, new.name)
    with pytest.raises(ConfigError, match="a diff takes two checkpoints"):
        fmscale("diff", tmp_path)


# --- prune


def seven(run_dir: Path) -> list[Commit]:
    """Steps 10 to 60 of term 1, an abandoned 70, an unfinished 75, and 65 of term 2, which went on from 60."""
    term, commits = start(run_of(run_dir)), []
    for step in range(10, 80, 10):
        commits.append(save(run_dir, step, term, commits[-1].name if commits else None))
    (run_dir / "checkpoints" / "step-00000075.t0001").mkdir()
    (run_dir / "checkpoints" / "step-00000075.t0001" / "rank-00000.json").write_bytes(b"half")
    term = start(run_dir, commits[5])
    return [*commits, save(run_dir, 65, term, commits[5].name)]


def steps_left(run_dir: Path) -> list[tuple[int, int]]:
    return [(commit.step, commit.term) for commit in store_of(run_dir).list()]


def test_prune_says_what_would_go_and_then_removes_just_that(tmp_path: Path) -> None:
    seven(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    _, told = fmscale("prune", tmp_path, "--keep", 2, "--keep-every", 20, "--dry-run")
    assert "step-00000070" not in told, "the newest term has one of its own, and two were to be kept"
    code, told = fmscale("prune", tmp_path, "--keep", 1, "--keep-every", 20, "--dry-run")
    assert code == 0
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name not in ("lock", ".taking")] == before
    assert "step-00000070.t0001: would be removed" in told
    assert "(outside the run's history)" in told
    assert "step-00000075.t0001: would be removed, 4 bytes (a save that did not finish)" in told
    free = sum(
        path.stat().st_size
        for step in (10, 30, 50, 70, 75)
        for path in (tmp_path / "checkpoints" / f"step-{step:08d}.t0001").iterdir()
    )
    assert told.splitlines()[-1] == f"5 checkpoints, {free:,} bytes"
    _, done = fmscale("prune", tmp_path, "--keep", 1, "--keep-every", 20)
    assert done == told.replace("would be removed", "removed")
    assert steps_left(tmp_path) == [(20, 1), (40, 1), (60, 1), (65, 2)]
    newest = store_of(tmp_path).newest_valid()
    assert newest is not None
    assert_holds(tmp_path, newest)
    assert fmscale("prune", tmp_path, "--keep", 1)[1].splitlines()[-1].startswith("2 checkpoints, ")
    assert steps_left(tmp_path) == [(60, 1), (65, 2)], "what the newest term was opened from stays"


def test_prune_never_removes_the_only_one_that_holds(tmp_path: Path) -> None:
    commits = seven(tmp_path)
    for commit in (commits[7], *commits[2:6]):
        file = tmp_path / "checkpoints" / commit.name / "rank-00000.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
    fmscale("prune", tmp_path, "--keep", 1)
    assert steps_left(tmp_path) == [(20, 1), (30, 1), (40, 1), (50, 1), (60, 1), (65, 2), (70, 1)], (
        "what the run was rolled back from stays too: the newest term has nothing that holds"
    )
    newest = store_of(tmp_path).newest_valid(lambda text: None)
    assert newest == commits[1]
    file = tmp_path / "checkpoints" / commits[1].name / "rank-00001.json"
    file.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="no checkpoint of this run holds, so none is removed"):
        fmscale("prune", tmp_path, "--keep", 1)
    assert len(steps_left(tmp_path)) == 7


def test_prune_is_refused_while_the_run_is_held(tmp_path: Path) -> None:
    seven(tmp_path)
    before = steps_left(tmp_path)
    with Lease(tmp_path).held(), pytest.raises(RunHeldError, match="another process holds this run"):
        fmscale("prune", tmp_path, "--keep", 1)
    assert steps_left(tmp_path) == before


# --- export (that DeepSpeed loads it: tests/numerics/test_export_deepspeed.py)


def test_an_export_appears_whole_or_not_at_all_and_over_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = saved(tmp_path / "run", 2, state(Config()), {})
    out = tmp_path / "out"
    _, told = fmscale("export-deepspeed", tmp_path / "run", commit.name, out)
    assert f"{4 * 3 * 51:,} bytes of tensors" in told
    assert (out / "latest_universal").read_text() == commit.name
    loaded = torch.load(out / commit.name / "zero" / "embedding" / "exp_avg.pt", weights_only=True)
    assert torch.equal(loaded["param"], values("embedding", "exp_avg", 10).view(7, 3))
    with pytest.raises(ConfigError, match="an export never overwrites anything"):
        export_deepspeed(reader(tmp_path / "run"), out)
    with pytest.raises(ConfigError, match="there is no directory for the export"):
        export_deepspeed(reader(tmp_path / "run"), tmp_path / "no" / "out")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        with pytest.raises(MachineError, match="the export does not fit on the disk"):
            export_deepspeed(reader(tmp_path / "run"), tmp_path / "second")
    monkeypatch.setattr(checkpoint_export, "_model_state", lambda reader: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_deepspeed(reader(tmp_path / "run"), tmp_path / "second")
    file = tmp_path / "run" / "checkpoints" / commit.name / "rank-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors"):
        export_deepspeed(reader(tmp_path / "run"), tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_disk_that_fills_up_during_an_export_is_told(tmp_path: Path) -> None:
    saved(tmp_path / "run", 1, state(Config()), {})
    source = reader(tmp_path / "run")
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            export_deepspeed(source, tmp_path / "out")
        except MachineError as error:
            os._exit(0 if "File too large" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
