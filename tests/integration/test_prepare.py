"""Whole preparations: the same bytes for any number of workers and after kill -9; nothing lost; held-out stays out."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zstandard

from data_pipeline.document import Document, text_id
from data_pipeline.inputs import pin
from data_pipeline.ngrams import ngram_hashes
from data_pipeline.pipeline import Recipe, is_heldout
from data_pipeline.plan import Plan, Work
from data_pipeline.run import prepare, train_tokenizer
from data_pipeline.scan import scan
from data_pipeline.workers import _Lost, _result
from fmscale.corpus.chunks import document_id
from fmscale.corpus.inputs import read_inputs
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.shards import Corpus
from fmscale.corpus.verify import verify
from fmscale.errors import ConfigError, DataError, MachineError
from fmscale.tokenizer import Tokenizer
from tests.raw_text import records, unlike, wait_for, write_raw
from tests.word_corpora import GOLDEN, text

MODEL = GOLDEN / "tokenizer.model"
GOLDEN_CONTENT = "2fd79fef39526ad38e0d4094906d2a2bc3a96607ea07a914c81ba9102f20a173"
HELDOUT = {"heldout_fraction": 0.2, "heldout_by": "group"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    directory = tmp_path_factory.mktemp("input") / "raw"
    return directory, write_raw(directory)


def recipe_of(raw: Path, output: Path, **changes: Any) -> Recipe:
    sizes = {"chunk_tokens": 512, "heldout_chunk_tokens": 128, "task_bytes": 20_000}
    return Recipe(inputs=[str(raw)], output=str(output), tokenizer=str(MODEL), **{**sizes, **HELDOUT, **changes})


@pytest.fixture(scope="module")
def reference(raw: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, prepared in this process without disturbance."""
    output = tmp_path_factory.mktemp("reference") / "corpus"
    prepare(recipe_of(raw[0], output), workers=0)
    return output


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Ray of one node, to which others can be added and taken from it; connected."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["DEATHS"] = str(tmp_path_factory.mktemp("deaths") / "life")  # workers have the environment of the start
    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def ray(cluster: Any) -> Any:
    return importlib.import_module("ray")


def digests(directory: Path) -> dict[str, str]:
    """Of every file but the one with times."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "times.json"
    }


def documents_of(directory: Path, split: str) -> dict[tuple[int, int], np.ndarray[Any, Any]]:
    """Tokens of each document of a split as far as its chunks hold them, by id. A token that ends one chunk and
    begins the next counts once; documents of equal id follow one another."""
    corpus = Corpus.open(directory, split)
    found: dict[tuple[int, int], list[np.ndarray[Any, Any]]] = {}
    for chunk in range(corpus.chunks):
        tokens = corpus.tokens(chunk)
        for doc in corpus.docs(chunk):
            start, length = int(doc["start"]), int(doc["length"])
            have = found.setdefault((int(doc["id"][0]), int(doc["id"][1])), [])
            skip = sum(map(len, have)) - int(doc["skipped"])
            assert skip in (0, 1), "a document goes on where it stopped"
            have.append(tokens[start + skip : start + length])
    return {key: np.concatenate(pieces) for key, pieces in found.items()}


def test_what_comes_out_is_what_went_in(raw: tuple[Path, int], reference: Path) -> None:
    manifest = Manifest.load(reference)
    assert verify(reference).damage == ()
    counts = manifest.counts
    assert counts["in"] == raw[1]
    assert counts["in"] == counts["out"] + sum(counts["dropped"].values())
    assert counts["out"] == counts["train"] + counts["heldout"]
    bad = {"bad_json": 1, "blank_line": 1, "no_group": 1, "no_text": 1}
    assert {reason: counts["dropped"][reason] for reason in bad} == bad
    assert counts["dropped"]["duplicate"] == 15
    assert min(counts["dropped"][reason] for reason in ("heldout_overlap", "heldout_too_short")) > 0
    assert manifest.recipe["left_out_files"] == {".png": 1}
    assert [file["path"] for file in read_inputs(reference, manifest)] == [
        "a.jsonl", "b.jsonl.gz", "c.jsonl", "folder0/page.txt", "folder1/page.txt", "folder2/page.txt",
    ]  # fmt: skip
    # Every training token: the documents of the input, in order, each closed by EOS, but for what fills no chunk.
    tokenizer = Tokenizer.load(reference / "tokenizer.model")
    texts = {document_id(record["id"]): record["text"] for record in records()}
    for split in ("train", "heldout"):
        found = documents_of(reference, split)
        whole = 0
        for key, tokens in found.items():
            if key in texts and tokens[-1] == tokenizer.eos_id:
                assert tokenizer.decode(tokens[:-1]) == texts[key]
                whole += 1
        assert whole >= counts[split] - 4 - 3, "all but those at the end of the stream, and the plain files"
        part = manifest.split(split)
        assert part.tokens_left_over <= part.chunk_tokens


def test_golden_content(reference: Path) -> None:
    """The same recipe and input give the same chunks in every version, or `plan.VERSION` must rise with this hash."""
    assert Manifest.load(reference).content_hash == GOLDEN_CONTENT


def test_a_heldout_document_is_in_no_training_row(reference: Path) -> None:
    """By documents' ids, by words and by tokens, on what the shards hold."""
    train, heldout = (documents_of(reference, split) for split in ("train", "heldout"))
    assert len(heldout) > 50
    assert not train.keys() & heldout.keys()
    choice = Recipe(**HELDOUT)  # type: ignore[arg-type]
    chosen = {document_id(r["id"]) for r in records() if is_heldout(choice, Document(r["id"], "", meta=r))}
    assert not train.keys() & chosen
    assert heldout.keys() - {document_id(text_id(text(i) * 20)) for i in range(3)} <= chosen
    tokenizer = Tokenizer.load(reference / "tokenizer.model")
    words = [
        set(ngram_hashes([tokenizer.decode(tokens) for tokens in split.values()], 13)[0].tolist())
        for split in (train, heldout)
    ]
    assert len(words[1]) > 1000
    assert not words[0] & words[1]
    # 13 words of this text, with their spaces, are never more than 120 tokens: so many in a row hold 13 whole words.
    runs = [
        {tokens[i : i + 120].tobytes() for tokens in split.values() for i in range(len(tokens) - 119)}
        for split in (train, heldout)
    ]
    assert len(runs[1]) > 1000
    assert not runs[0] & runs[1]


def test_without_decontamination_quotes_would_stay(raw: tuple[Path, int], tmp_path: Path) -> None:
    """The test above can fail: switched off, held-out text does stand in training."""
    manifest = prepare(recipe_of(raw[0], tmp_path / "c", decontaminate_ngram=0, dedup="off"), workers=0)
    assert manifest.counts["dropped"].keys() >= {"heldout_duplicate"}
    assert not manifest.counts["dropped"].keys() & {"heldout_overlap", "heldout_too_short", "duplicate"}
    split = [documents_of(tmp_path / "c", name) for name in ("train", "heldout")]
    tokenizer = Tokenizer.load(MODEL)
    words = [set(ngram_hashes([tokenizer.decode(t) for t in s.values()], 13)[0].tolist()) for s in split]
    assert words[0] & words[1]


def test_groups_only_if_asked_and_no_split_if_none(raw: tuple[Path, int], tmp_path: Path) -> None:
    manifest = prepare(recipe_of(raw[0], tmp_path / "c", heldout_fraction=0.0, heldout_by="document"), workers=0)
    assert manifest.split("heldout").chunks == 0
    assert "no_group" not in manifest.counts["dropped"]
    assert manifest.counts["heldout"] == 0


def test_bytes_do_not_depend_on_workers(raw: tuple[Path, int], reference: Path, tmp_path: Path, ray: Any) -> None:
    for workers in (1, 2):
        prepare(recipe_of(raw[0], tmp_path / f"{workers}"), workers=workers)
        assert digests(tmp_path / f"{workers}") == digests(reference)
    assert ray.is_initialized(), "a Ray that was there stays"


def test_what_is_there_is_not_made_again(raw: tuple[Path, int], reference: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.iterdir()}
    (reference / ".work").mkdir()  # as a kill during the last cleaning up leaves it
    for _ in range(2):
        manifest = prepare(recipe_of(raw[0], reference), workers=0)
        assert manifest == Manifest.load(reference)
        assert {path: path.stat().st_mtime_ns for path in reference.iterdir()} == before
    with pytest.raises(
        DataError, match=r"holds another corpus\n  expected: one of plan [0-9a-f]{16}.*\n.*\n  do: choose another"
    ):
        prepare(recipe_of(raw[0], reference, seed=1), workers=0)
    assert {path: path.stat().st_mtime_ns for path in reference.iterdir()} == before


KILLED_AGAIN_AND_AGAIN = """
import os, signal, sys
from pathlib import Path
from data_pipeline.pipeline import Recipe
from data_pipeline.run import prepare
import webdataset  # once, not in each child

recipe = Recipe(**{settings})
work = Path(recipe.output, ".work")
fsync, kills, done = os.fsync, 0, dict()

def deadly(limit):
    calls = 0
    def count(handle):
        nonlocal calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)
    return count

while True:
    child = os.fork()
    if child == 0:
        os.fsync = deadly(limit=2 + 3 * kills)
        prepare(recipe)
        os._exit(1 if "ray" in sys.modules else 0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
    kills += 1
    now = dict((path.name, path.stat().st_mtime_ns) for path in work.glob("*/[sw]*-*.npz"))
    assert done.items() <= now.items(), "what was done is not done again"
    done = now
print(kills, len(done), status)
"""


def settings_of(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}


@pytest.mark.processes
def test_kill_9_anywhere_then_the_same_command(raw: tuple[Path, int], reference: Path, tmp_path: Path) -> None:
    """Killed while a file is being made durable, a little later each time, until nothing is left to do. Where no Ray
    is connected, none is imported."""
    code = KILLED_AGAIN_AND_AGAIN.replace("{settings}", str(settings_of(recipe_of(raw[0], tmp_path / "c"))))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    kills, files, status = map(int, ended.stdout.split())
    assert status == 0, ended.stderr
    assert kills >= 5
    assert files >= 10
    assert digests(tmp_path / "c") == digests(reference)


@pytest.mark.processes
def test_kill_9_while_ray_works(raw: tuple[Path, int], reference: Path, tmp_path: Path) -> None:
    recipe = recipe_of(raw[0], tmp_path / "c")
    code = f"""
from data_pipeline import pipeline, run
from launcher.ray_cluster import cluster
with cluster(min_cpus=2):
    run.prepare(pipeline.Recipe(**{settings_of(recipe)}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 100
        while not list((tmp_path / "c/.work").glob("*/scan-*")):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline, "no task was ever done"
            time.sleep(0.005)
        below = psutil.Process(process.pid).children(recursive=True)
        assert below, "Ray runs in processes of its own"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "c/manifest.json").exists()
    prepare(recipe, workers=0)
    assert digests(tmp_path / "c") == digests(reference)
    for child in below:  # they end by themselves, in their own time; until then they may have been writing too
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


@pytest.mark.processes
@pytest.mark.parametrize("whom", ["the command", "its group"])
def test_ctrl_c_says_that_the_work_is_kept(raw: tuple[Path, int], tmp_path: Path, whom: str) -> None:
    """A terminal tells the whole group of processes, `kill -INT` only the command."""
    arguments = [
        f"{name}={json.dumps(value)}" for name, value in settings_of(recipe_of(raw[0], tmp_path / "c")).items()
    ]
    command = [sys.executable, "-m", "launcher.cli", "data", "prepare", *arguments, "--workers", "2"]
    process = subprocess.Popen(
        [*command, "steps=[tests.raw_text:sleepy]"], stderr=subprocess.PIPE, start_new_session=True, text=True,
        env={**os.environ, "SLEEPY": str(tmp_path / "slept")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background have it ignored
    )  # fmt: skip
    try:
        wait_for(tmp_path / "slept")
        (os.kill if whom == "the command" else os.killpg)(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; what is done is kept: the same command goes on from it"
    assert not [line for line in said.splitlines() if "Traceback" in line or "bug in Ray" in line or "error" in line]
    assert list((tmp_path / "c/.work").glob("*/plan.json"))


def test_changed_input_starts_over(
    raw: tuple[Path, int], reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, work = tmp_path / "c", tmp_path / "c/.work"
    with pytest.raises(DataError, match="too many bad records"):
        prepare(recipe_of(raw[0], output, max_bad_share=0.0, max_bad_run=2, seed=5), workers=0)
    assert list(work.glob("*/scan-*"))
    prepare(recipe_of(raw[0], output), workers=0)
    assert "unfinished work starts over" in capsys.readouterr().err
    assert digests(output) == digests(reference)


def lines_below(directory: Path) -> int:
    unpack = zstandard.ZstdDecompressor()
    return sum(unpack.stream_reader(path.read_bytes()).read().count(b"\n") for path in directory.glob("*.jsonl.zst"))


def test_dropped_documents_are_all_there_or_it_is_said(
    raw: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that was begun without them does not serve; neither does a corpus that is finished."""
    monkeypatch.setattr("data_pipeline.run.tokenise", lambda work, task: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(recipe_of(raw[0], tmp_path / "c"), workers=0)
    monkeypatch.undo()
    capsys.readouterr()
    manifest = prepare(recipe_of(raw[0], tmp_path / "c", keep_dropped=True), workers=0)
    assert "unfinished work starts over" in capsys.readouterr().err
    assert lines_below(tmp_path / "c/dropped") == sum(manifest.counts["dropped"].values()) > 15
    assert prepare(recipe_of(raw[0], tmp_path / "c", keep_dropped=True), workers=0) == manifest
    plain = prepare(recipe_of(raw[0], tmp_path / "d"), workers=0)
    assert plain == manifest, "they are not part of the corpus"
    with pytest.raises(
        DataError,
        match=r"^.*/d was made without its dropped documents\n  expected: .*/d/dropped \(keep_dropped=true\)\n"
        r"  found: the corpus .*\n  do: choose another output, or .* leave keep_dropped out$",
    ):
        prepare(recipe_of(raw[0], tmp_path / "d", keep_dropped=True), workers=0)


def test_a_dropped_file_that_got_lost_is_found(
    raw: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipeline import run

    def lose(work: Work, output: Path) -> Manifest:
        max(work.dropped.iterdir(), key=lambda path: path.stat().st_size).unlink()
        return finish(work, output)

    finish = run.finish
    monkeypatch.setattr(run, "finish", lose)
    with pytest.raises(
        DataError, match=r"dropped documents are missing\n  expected: \d+ lines in .*\n  found: \d+ lines in \d+ file"
    ):
        prepare(recipe_of(raw[0], tmp_path / "c", keep_dropped=True), workers=0)
    assert not (tmp_path / "c/manifest.json").exists()


WHOLLY_BAD = {
    "array": (
        json.dumps([{"text": unlike(i)} for i in range(300)]),
        r"not_an_object 1 \(.*\): .*\n  do: write one JSON object a line; an array of documents is none, or leave",
    ),
    "other field": (
        "\n".join(json.dumps({"content": unlike(i)}) for i in range(90)) + "\n\n",
        r"no_text 90 \(the text field is missing or no string\): [\d,]+ of [\d,]+ bytes\n"
        r"  do: set text_field to the input's own name, or leave",
    ),
    "CR only": (
        "\r".join(json.dumps({"text": unlike(i)}) for i in range(90)),
        r"bad_json 1 \(.*\): .*\n  do: write one JSON object a line, each line ended by LF, or leave",
    ),
}


@pytest.mark.parametrize("name", WHOLLY_BAD)
def test_a_file_without_a_good_record_is_damaged_input(tmp_path: Path, name: str) -> None:
    """However few its bad records are, and in however many tasks they stand."""
    content, words = WHOLLY_BAD[name]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.jsonl").write_text("\n".join(json.dumps({"text": unlike(i)}) for i in range(600)))
    (tmp_path / "raw/b.jsonl").write_bytes(content.encode())
    changes: dict[str, Any] = {"heldout_by": "document", "task_bytes": 5000}
    with pytest.raises(
        DataError,
        match=r"^an input file has not a single good record\n  expected: JSON objects, one a line, .* in `text`; "
        r"or at most 1\.00% of input damaged \(max_bad_input\)\n  found: b\.jsonl, \d+ bad and none that is good: "
        + words,
    ) as caught:
        prepare(recipe_of(tmp_path / "raw", tmp_path / "c", **changes), workers=0)
    assert len(str(caught.value).splitlines()) <= 6
    manifest = prepare(recipe_of(tmp_path / "raw", tmp_path / "c", **changes, max_bad_input=0.5), workers=0)
    lost = manifest.counts["quarantined"]
    assert {each["file"] for each in lost} == {"b.jsonl"}
    assert sum(each["stop"] - each["start"] for each in lost) == len(content.encode())
    assert manifest.counts["in"] == manifest.counts["out"] + sum(manifest.counts["dropped"].values())


def test_one_good_record_in_any_task_is_enough(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.jsonl").write_text("\n".join(json.dumps({"text": unlike(i)}) for i in range(300)))
    (tmp_path / "raw/b.jsonl").write_text('{"x": 1}\n' * 90 + json.dumps({"text": unlike(301)}))
    (tmp_path / "raw/blank.jsonl").write_text("\n" * 5000)
    recipe = recipe_of(tmp_path / "raw", tmp_path / "c", heldout_by="document", task_bytes=1000)
    manifest = prepare(recipe, workers=0)
    assert manifest.counts["dropped"]["no_text"] == 90
    assert "quarantined" not in manifest.counts


def test_a_corpus_among_the_inputs_is_left_out(
    raw: tuple[Path, int], reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(raw[0], tmp_path / "raw")
    shutil.copytree(reference, tmp_path / "raw/corpus")
    manifest = prepare(recipe_of(tmp_path / "raw", tmp_path / "c"), workers=0)
    assert "left out, as what was made of input before: 1 corpus of ours\n" in capsys.readouterr().err
    assert manifest.recipe["left_out_files"] == {".png": 1, "corpus of ours": 1}
    assert manifest.content_hash == Manifest.load(reference).content_hash


def test_the_longest_run_of_bad_records_is_part_of_the_plan(tmp_path: Path) -> None:
    """It decides whether a file with such a run is left out: two corpora, so two plans."""
    good = [json.dumps({"text": unlike(i)}) for i in range(600)]
    (tmp_path / "a.jsonl").write_text("\n".join(good))
    (tmp_path / "b.jsonl").write_text("\n".join([*good[:200], *["{}"] * 150, *good[:30]]))
    changes: dict[str, Any] = {"heldout_by": "document", "max_bad_input": 1.0, "max_bad_share": 1.0, "task_bytes": 0}
    raw, output = tmp_path / "*.jsonl", tmp_path / "c"
    manifest = prepare(recipe_of(raw, output, **changes), workers=0)
    assert [lost["file"] for lost in manifest.counts["quarantined"]] == ["b.jsonl"]
    for key in ("max_bad_share", "max_bad_input"):  # whether there is a corpus, not which
        assert prepare(recipe_of(raw, output, **{**changes, key: 0.5}), workers=0) == manifest
    with pytest.raises(DataError, match=r"holds another corpus\n  expected: one of plan"):
        prepare(recipe_of(raw, output, **changes, max_bad_run=1000), workers=0)
    other = prepare(recipe_of(raw, tmp_path / "d", **changes, max_bad_run=1000), workers=0)
    assert "quarantined" not in other.counts
    assert other.recipe["max_bad_run"] == 1000


def test_a_worker_that_outlived_its_run_disturbs_no_other(
    raw: tuple[Path, int], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was reading for another plan when its run was killed; the next run's plan is half done when it writes."""
    monkeypatch.setenv("MEETING", str(tmp_path))
    old = recipe_of(raw[0], tmp_path / "c", seed=5, steps=["tests.raw_text:overtaken"])
    fingerprint = Tokenizer.load(MODEL).fingerprint
    work = Work.create(tmp_path / "c/.work", Plan.of(old, pin(old.inputs, old.task_bytes), fingerprint))
    ends: list[str] = []

    def outlive() -> None:
        try:
            scan(work, 0, 0)
        except FileNotFoundError:
            ends.append("its directory is gone")
        (tmp_path / "over").touch()

    worker = threading.Thread(target=outlive)
    worker.start()
    wait_for(tmp_path / "waiting")
    manifest = prepare(recipe_of(raw[0], tmp_path / "c", steps=["tests.raw_text:overtaking"]), workers=0)
    worker.join()
    assert ends == ["its directory is gone"]
    assert manifest.content_hash == Manifest.load(reference).content_hash


def test_one_at_a_time(raw: tuple[Path, int], tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "c/.work").mkdir(parents=True)
    with open(tmp_path / "c/.work/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"another process is preparing .*/c\n.*\n.*a lock on .*\n  do: wait"):
            prepare(recipe_of(raw[0], tmp_path / "c"), workers=0)


def test_steps_of_ones_own(raw: tuple[Path, int], tmp_path: Path, ray: Any) -> None:
    """And each of two workers that die costs a repetition, nothing else."""
    steps = ["tests.raw_text:deadly_twice", "tests.raw_text:no_ninety"]
    manifest = prepare(recipe_of(raw[0], tmp_path / "c", steps=steps), workers=2)
    assert Path(os.environ["DEATHS"] + "1").exists()
    assert manifest.counts["dropped"]["ninety"] == 6
    assert document_id("d190") not in documents_of(tmp_path / "c", "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_step_that_fails_is_told_alike_by_every_worker(
    workers: int, raw: tuple[Path, int], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if workers:
        request.getfixturevalue("ray")
    with pytest.raises(
        DataError,
        match=r"^step tests\.raw_text:untitled failed\n  expected: .*\n  found: KeyError: 'title' \(.*raw_text\.py, "
        r"line \d+\); the last document it was given: record \d+ of .+\n  do: correct the step.*$",
    ) as caught:
        prepare(recipe_of(raw[0], tmp_path / "c", steps=["tests.raw_text:untitled"]), workers=workers)
    assert len(str(caught.value).splitlines()) <= 6


@pytest.mark.processes
def test_workers_that_keep_dying(raw: tuple[Path, int], tmp_path: Path, ray: Any) -> None:
    with pytest.raises(
        MachineError, match=r"task 0 lost its worker 4 times\n.*\n  found: WorkerCrashedError at .*\n  do: run the same"
    ):
        prepare(recipe_of(raw[0], tmp_path / "c", steps=["tests.raw_text:deadly"], task_bytes=1 << 20), workers=1)


@pytest.mark.processes
def test_what_went_with_its_node_can_be_done_again(tmp_path: Path, ray: Any, cluster: Any) -> None:
    def endless() -> int:
        (tmp_path / "begun").touch()
        time.sleep(1000)
        return 0

    node = cluster.add_node(num_cpus=1, resources={"doomed": 1}, object_store_memory=100 << 20)
    reference = ray.remote(max_retries=0, resources={"doomed": 1})(endless).remote()
    wait_for(tmp_path / "begun")
    cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(_Lost, match="NodeDiedError"):
        _result(reference)


def test_workers_without_ray(raw: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # as in a process that has not imported it
    with pytest.raises(
        ConfigError, match=r"need a Ray that is connected\n.*\n  found: workers=2, and no Ray\n  do: con"
    ):
        prepare(recipe_of(raw[0], tmp_path / "c"), workers=2)


def test_errors_in_workers_are_ours(raw: tuple[Path, int], tmp_path: Path, ray: Any) -> None:
    with pytest.raises(DataError, match=r"^an input file has not a single good record\n  expected: .*`body`") as caught:
        prepare(recipe_of(raw[0], tmp_path / "c", text_field="body"), workers=2)
    assert "Traceback" not in str(caught.value)


def test_what_a_worker_meets_on_a_disk_is_told_as_here(raw: tuple[Path, int], tmp_path: Path, ray: Any) -> None:
    """A disk that is full is one thing, a file that a step lacks another; neither shows Ray's traceback."""
    for steps, wrong, message in (
        (
            ["tests.raw_text:on_a_full_disk"],
            MachineError,
            r"^the corpus could not be written; .*\n  expected: room at .*/c for .*\n"
            r"  found: No space left on device; [\d,]+ bytes free\n  do: make room",
        ),
        (
            ["tests.raw_text:on_a_mount_that_went"],
            MachineError,
            r"^a file or a connection failed while the corpus was prepared; .*\n  expected: what the recipe's steps "
            r"open .*\n  found: OSError: Stale file handle \(/mnt/list\.txt\)\n  do: mend that",
        ),
        (
            ["tests.raw_text:without_its_list"],
            DataError,
            r"^step tests\.raw_text:without_its_list failed\n.*\n  found: FileNotFoundError: .*list\.txt'",
        ),
    ):
        for workers in (0, 1):
            with pytest.raises(wrong, match=message) as caught:
                prepare(recipe_of(raw[0], tmp_path / "c", steps=steps), workers=workers)
            assert len(str(caught.value).splitlines()) == 4


def test_an_output_that_cannot_be_made(raw: tuple[Path, int], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in ("file", "file/below"):
        with pytest.raises(
            ConfigError,
            match=r"output cannot be a directory\n  expected: output=DIR.*\n  found: .*/file, a file\n  do: set out",
        ):
            prepare(recipe_of(raw[0], tmp_path / output), workers=0)
    with pytest.raises(
        MachineError,
        match=r"output cannot be written\n  expected: output=/proc/fmscale/c: .*\n"
        r"  found: No such file or directory \(/proc/fmscale\)\n  do: set output to another place",
    ):
        prepare(recipe_of(raw[0], Path("/proc/fmscale/c")), workers=0)


def test_workers_below_none(raw: tuple[Path, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"workers is negative\n  expected: 0 .*\n  found: workers=-3\n  do: set 1"):
        prepare(recipe_of(raw[0], tmp_path / "c"), workers=-3)


def test_no_byte_of_input(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(
        DataError,
        match=r"^the inputs hold no document\n  expected: one at least\n  found: files without a byte: 2, "
        r"the first of them a\.jsonl\n  do: look whether",
    ):
        prepare(recipe_of(tmp_path / "*.jsonl", tmp_path / "c"), workers=0)


def test_too_little_text_that_is_left_of_much(tmp_path: Path) -> None:
    """Then the reasons say more than the size does."""
    texts = [f"only {i} few words" for i in range(300)] + [unlike(i) for i in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps({"text": text}) for text in texts] + ["{"]))
    (tmp_path / "b.jsonl").write_text("[]")
    recipe = recipe_of(
        tmp_path / "*.jsonl", tmp_path / "c", heldout_fraction=0.0, heldout_by="document", chunk_tokens=4096,
        steps=["gopher_quality"],
    )  # fmt: skip
    with pytest.raises(
        DataError,
        match=r"fills not a single chunk\n  expected: more than 4096 tokens .*\n"
        r"  found: \d+ tokens in \d of 311 documents; dropped: gopher_quality/short_doc 300, .*; "
        r"damaged and left out: 1 files\n  do: look at what goes by gopher_quality/short_doc, with keep_dropped=true",
    ):
        prepare(recipe, workers=0)


def test_too_little_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(unlike(1))
    recipe = recipe_of(tmp_path / "a.txt", tmp_path / "c", heldout_fraction=0.0, chunk_tokens=4096)
    with pytest.raises(
        DataError, match=r"fills not a single chunk\n  expected: more than 4096 tokens .*\n  found: \d+ tokens in 1"
    ):
        prepare(recipe, workers=0)


def test_an_empty_heldout_split_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(unlike(1) * 10)
    prepare(recipe_of(tmp_path / "a.txt", tmp_path / "c", heldout_fraction=1e-9), workers=0)
    assert "nothing is held out: no evaluation is possible" in capsys.readouterr().err


def test_a_changed_tokenizer_is_found(raw: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_pipeline import plan

    with pytest.raises(
        DataError, match=r"tokenizer changed while .*\n  expected: fingerprint 0000.*\n  found: .*tokenizer\.model"
    ):
        plan.tokenizer_of(str(MODEL), "0" * 64)


def test_the_tokenizer_learns_nothing_of_heldout_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raw(tmp_path / "raw")
    seen: list[str] = []
    monkeypatch.setattr("data_pipeline.run.train_on_texts", lambda texts, *args, **options: seen.extend(texts))
    recipe = recipe_of(tmp_path / "raw", tmp_path / "c")
    train_tokenizer([str(tmp_path / "raw")], out=tmp_path / "m", recipe=recipe)
    heldout = {r["text"] for r in records() if is_heldout(recipe, Document(r["id"], "", meta=r))}
    others = {r["text"] for r in records() if not is_heldout(recipe, Document(r["id"], "", meta=r))}
    assert Counter(t in heldout - others for t in seen)[True] == 0
    assert others <= set(seen)


def test_a_tokenizers_bad_records_are_counted_and_too_many_stop_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = [json.dumps({"text": unlike(i)}) for i in range(300)], ['{"text": broken', '{"body": "elsewhere"}']
    (tmp_path / "a.jsonl").write_text("\n".join([*good, *bad, ""]))
    (tmp_path / "b.png").touch()
    train_tokenizer([str(tmp_path)], out=tmp_path / "m", vocab_size=512)
    said = capsys.readouterr().err
    assert "not in the sample: 1 of 302 records, the line is no JSON\n" in said
    assert "not in the sample: 1 of 302 records, the text field is missing or no string\n" in said
    assert "left out, of no known kind: 1 .png\n" in said
    (tmp_path / "a.jsonl").write_text("\n".join(line for one in good for line in (one, bad[0])))
    with pytest.raises(
        DataError, match=r"too many bad records\n  expected: .* of 600 records .*\n  found: bad_json 300"
    ):
        train_tokenizer([str(tmp_path)], out=tmp_path / "no.model", vocab_size=512)
    assert not (tmp_path / "no.model").exists()


def test_a_tokenizer_reads_the_recipes_text_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": unlike(i)}) for i in range(100)))
    recipe = Recipe(text_field="body")
    with pytest.raises(
        ConfigError, match=r"the recipe names another text field\n  expected: text_field body, .*\n  found: content\n"
    ):
        train_tokenizer([str(tmp_path)], text_field="content", out=tmp_path / "m", vocab_size=512, recipe=recipe)
    for text_field in ("text", "body"):
        train_tokenizer([str(tmp_path)], text_field=text_field, out=tmp_path / "m", vocab_size=512, recipe=recipe)


def test_a_tokenizer_is_trained_from_files(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw")
    first = train_tokenizer([str(tmp_path / "raw")], out=tmp_path / "a/1.model", vocab_size=512)
    (tmp_path / "raw/c.jsonl").rename(tmp_path / "raw/0.jsonl")  # another order of files
    again = train_tokenizer([str(tmp_path / "raw")], out=tmp_path / "2.model", vocab_size=512)
    assert first.fingerprint == again.fingerprint
    assert json.dumps(first.decode(first.encode("the tide 7"))) == '"the tide 7"'
