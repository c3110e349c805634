"""The `fmscale` command as a user meets it: mistakes, refusals, dry runs, and nothing heavy before it is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fmscale.training.lease import Lease
from launcher.snapshot import enter
from launcher.start import check
from tests.integration.test_train import config_of, go
from tests.runs import Run

HEAVY = {"torch", "ray", "deepspeed", "wandb", "numpy", "sentencepiece", "webdataset"}


def fmscale(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)


def test_the_command_imports_nothing_heavy_to_answer_help() -> None:
    code = f"import sys, launcher.cli; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
    shown = fmscale("--help").stdout
    assert all(word in shown for word in ("train", "order", "data", "tokenizer", "runs", "checkpoint", "Exit codes"))


def test_the_supervisor_needs_no_torch_and_no_ray() -> None:
    code = "import sys, launcher.supervise; print(sorted({'torch', 'ray', 'deepspeed', 'wandb'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("mistake", "words_of_it"),
    [
        ("train.stepz=3", "did you mean `steps`"),
        ("data.sources.words.corpus=/nowhere", "no such directory"),
        ("train.micro_batch=64", "micro-batch is larger"),
        ("model.vocab_size=1000", "not the tokenizer's"),
        ("data.seq_len=4096", "does not fit into a chunk"),
    ],
)
def test_a_mistake_ends_with_code_2_and_starts_nothing(
    tmp_path: Path, words: Path, mistake: str, words_of_it: str
) -> None:
    run = Run(tmp_path, "mistake", words, ["launch.backend=ray"])
    done = fmscale("train", *run.arguments(mistake))
    assert done.returncode == 2
    assert words_of_it in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) <= 6
    assert "Traceback" not in done.stderr
    assert not run.directory.exists()


@pytest.mark.parametrize(
    ("arguments", "words_of_it"),
    [(["nope"], "nope"), (["train", "--nope"], "--nope"), (["train"], "SETTINGS"), (["train", "-h"], "-h")],
)
def test_a_wrong_command_line_is_one_message_and_code_2(arguments: list[str], words_of_it: str) -> None:
    done = fmscale(*arguments)
    assert done.returncode == 2
    assert words_of_it in done.stderr or words_of_it.lower() in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 6


def test_what_the_machine_refuses_has_code_6(tmp_path: Path, words: Path) -> None:
    (tmp_path / "file").write_text("")
    done = fmscale("train", *Run(tmp_path, "x", words).arguments(f"run.root={tmp_path / 'file'}"))
    assert done.returncode == 6
    assert "the machine refused a file or a connection" in done.stderr
    assert "Traceback" not in done.stderr


def test_checkpoints_are_listed_and_verified(tmp_path: Path, words: Path) -> None:
    config = config_of(tmp_path, words, "kept", "train.steps=8")
    go(config)
    listed = fmscale("checkpoint", "list", str(config.run_dir))
    assert listed.stdout.startswith("step-00000008.t0001  step 8 (100%)  term 1  rows 64  ")
    assert " of 1 ranks, plain  " in listed.stdout
    assert listed.stdout.splitlines()[0].endswith(" ago  <- the next start goes on from here")
    assert fmscale("checkpoint", "verify", str(config.run_dir)).stdout.count("every byte holds") == 2
    marker = config.run_dir / "checkpoints" / "step-00000008.t0001" / "COMMIT.json"
    marker.write_bytes(b"#" + marker.read_bytes()[1:])
    verified = fmscale("checkpoint", "verify", str(config.run_dir))
    assert verified.returncode == 4
    assert "step-00000004.t0001: every byte holds" in verified.stdout
    assert "step-00000008.t0001: 1 wrong\n  " in verified.stdout
    assert "1 checkpoints do not hold" in verified.stderr
    shown = json.loads(fmscale("runs", "show", str(config.run_dir), "--json").stdout)
    assert [line["step"] for line in shown["steps"]] == list(range(1, 9))
    assert shown["summary"]["tokens"] == 8 * 8 * 64


def test_a_dry_run_refuses_what_the_start_would(tmp_path: Path, words: Path) -> None:
    enter(check(config_of(tmp_path, words, "dry-changed")))
    done = fmscale("train", "--dry-run", *Run(tmp_path, "dry-changed", words).arguments("data.seed=5"))
    assert done.returncode == 2
    assert "data.seed: 0 -> 5" in done.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "dry", words)
    done = fmscale("train", "--dry-run", *run.arguments())
    assert done.returncode == 0, done.stderr
    for expected in ("parameters", "FLOPs", "epochs of", "ranks"):
        assert expected in done.stdout
    assert not run.directory.exists()
    printed = fmscale("train", "--print-config", *run.arguments("train.steps=7"))
    assert "steps: 7" in printed.stdout
    assert not run.directory.exists()


def test_a_second_launch_is_refused_and_told_who_holds_the_run(tmp_path: Path, words: Path) -> None:
    run = Run(tmp_path, "held", words)
    with Lease(run.directory).held():
        done = fmscale("train", *run.arguments())
    assert done.returncode == 5
    assert "another process holds this run" in done.stderr
    assert "process " in done.stderr


def test_a_changed_identity_is_refused_with_the_difference(tmp_path: Path, words: Path) -> None:
    enter(check(config_of(tmp_path, words, "changed")))
    done = fmscale("train", *Run(tmp_path, "changed", words).arguments("data.seed=5"))
    assert done.returncode == 2
    assert "data.seed: 0 -> 5" in done.stderr


def test_order_of_a_config_as_json(tmp_path: Path, words: Path) -> None:
    arguments = Run(tmp_path, "order", words).arguments()
    done = fmscale("order", *arguments, "--from", "3", "--steps", "2", "--dp", "3", "--json")
    records = json.loads(done.stdout)
    assert [record["step"] for record in records] == [3, 4]
    assert records[0]["rows_per_rank"] == [[16, 17], [18, 19, 20], [21, 22, 23]]
    assert all(len(record["batch_hash"]) == 32 for record in records)


@pytest.mark.parametrize("mistake", ["train.micro_batch=0", "data.sources.words.weight=-1", "data.seq_len=0"])
def test_order_checks_its_settings(tmp_path: Path, words: Path, mistake: str) -> None:
    done = fmscale("order", *Run(tmp_path, "order", words).arguments(mistake))
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr


def test_data_verify_finds_a_flipped_byte(tmp_path: Path, words: Path) -> None:
    shutil.copytree(words, tmp_path / "copy")
    assert fmscale("data", "verify", str(tmp_path / "copy")).returncode == 0
    shard = next((tmp_path / "copy").glob("train-*.tar"))
    raw = bytearray(shard.read_bytes())
    raw[5000] ^= 4
    shard.write_bytes(raw)
    repairs = tmp_path / "repairs.json"
    done = fmscale("data", "verify", str(tmp_path / "copy"), "--repair-report", str(repairs))
    assert done.returncode == 3
    assert shard.name in done.stderr
    assert done.stdout.startswith("damaged: ")
    report = json.loads(repairs.read_text())
    (chunk,) = report["chunks"]
    assert (report["files"][0]["file"], chunk["file"]) == (shard.name, shard.name)
    assert any(begin <= 5000 < end for begin, end in report["files"][0]["wrong_bytes"])
    assert f"lost: train chunks {chunk['chunk']}: " in done.stdout
    assert f"fmscale order edit RUN quarantine SOURCE {chunk['chunk']}\n" in done.stdout
    (tmp_path / "copy" / "index.bin").unlink()
    assert fmscale("data", "verify", str(tmp_path / "copy"), "--repair-report", str(repairs)).returncode == 3


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    done = fmscale("runs", "show", str(tmp_path / "absent"))
    assert done.returncode == 2
    assert "no such run" in done.stderr


def test_a_report_into_a_directory_is_refused(tmp_path: Path, words: Path) -> None:
    done = fmscale("data", "report", str(words), "--output", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f"error: --output is a directory\n  expected: a file\n  found: {tmp_path}\n"
        f"  do: give --output {tmp_path / 'report.html'}\n"
    )


def test_fewer_workers_than_none_are_refused() -> None:
    done = fmscale("data", "prepare", "output=c", "--workers", "-3")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--workers" in done.stderr
