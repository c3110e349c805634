"""Ledger, metrics and config in the object store: an empty machine goes on with them, and nothing is overwritten."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.config import Config, RunConfig
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.steps import StepPlan
from fmscale.errors import CheckpointError, DataError
from fmscale.observe.events import read_events
from fmscale.observe.metrics import MetricsLog, series
from fmscale.training import records
from fmscale.training.checkpoint_format import Commit
from fmscale.training.lease import Lease
from fmscale.training.records import FILES, LIST, bring_back, lacking, push
from tests.checkpoints import save
from tests.faults.test_restore import config_of, new_run, open_term, remote_of
from tests.s3_server import BUCKET, Proxy

STEPS = StepPlan.constant(4, 8)


def edited(ledger: Ledger, from_row: int, rows: int = 4) -> Ledger:
    return ledger.append("skip", {"rows": rows}, from_row=from_row, rows_consumed=from_row, steps=STEPS)


def train(run_dir: Path, term: int, first: int, last: int) -> None:
    log = MetricsLog(run_dir, term)
    for step in range(first, last + 1):
        log.step({"step": step, "loss": 1 / step})
        if step % 5 == 0:
            log.eval({"step": step, "heldout_loss": 2 / step})
    log.close()


def copied(run_dir: Path, step: int, term: int, parent: Commit | None, **state: Any) -> Commit:
    """Saved, and copied as an uploader does it."""
    commit = save(run_dir, step, term, parent.name if parent else None, **state)
    remote = remote_of(run_dir)
    remote.push(commit, 0, 1)
    push(remote, commit.name)
    remote.commit(commit, term)
    return commit


def a_run(tmp_path: Path) -> tuple[Path, Commit]:
    """Trained to step 12, with a checkpoint of step 10 in the store, and an edit of rows to come."""
    run_dir = new_run(tmp_path)
    (run_dir / "wandb").mkdir(parents=True)
    for file in ("config.yaml", "snapshot.json", "wandb/run_id"):
        (run_dir / file).write_text(f"{file} of {run_dir.name}")
    edited(Ledger(), 80).save(run_dir / FILE_NAME)
    term = open_term(run_dir)
    train(run_dir, term, 1, 12)
    return run_dir, copied(run_dir, 10, term, None)


def elsewhere(run_dir: Path, tmp_path: Path) -> Config:
    """The same run on a machine that has nothing of it."""
    config = config_of(run_dir)
    return replace(config, run=RunConfig(root=str(tmp_path / f"other{uuid.uuid4().hex}"), name=run_dir.name))


def contents(run_dir: Path) -> dict[str, bytes]:
    return {file: (run_dir / file).read_bytes() for file in FILES if (run_dir / file).exists()}


def remarks(run_dir: Path) -> list[str]:
    return [event["text"] for event in read_events(run_dir) if event["kind"] == "remark"]


def test_an_empty_machine_gets_all_of_it_once(
    tmp_path: Path, server: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, _ = a_run(tmp_path)
    config = elsewhere(run_dir, tmp_path)
    assert lacking(config)
    assert sorted(bring_back(config)) == sorted(FILES)
    assert contents(config.run_dir) == contents(run_dir)
    assert "wandb/run_id: brought here from s3://" in capsys.readouterr().out
    assert bring_back(config) == [], "what was killed in the middle does it again"
    remote_of(config.run_dir).sync_terms()
    assert not lacking(config)
    assert not lacking(config_of(run_dir)), "whoever holds the newest term has all there is"
    assert not lacking(Config())
    assert not [path for path in (config.run_dir / "upload").iterdir() if path.name.startswith("record")]


def test_what_is_here_is_not_overwritten_and_logs_get_what_they_lack(tmp_path: Path, server: Proxy) -> None:
    run_dir, commit = a_run(tmp_path)
    config = elsewhere(run_dir, tmp_path)
    bring_back(config)
    remote = remote_of(config.run_dir)
    remote.sync_terms()
    remote.fetch(commit, 0, 1)
    remote.publish(commit)
    term = open_term(config.run_dir, commit)
    (config.run_dir / "config.yaml").write_text("with another number of ranks")
    edited(Ledger.load(config.run_dir / FILE_NAME), 400).save(config.run_dir / FILE_NAME)
    train(config.run_dir, term, 11, 20)
    copied(config.run_dir, 20, term, commit)
    train(run_dir, 1, 13, 14)  # the first machine was cut off, and went on for a while

    before = contents(run_dir)
    assert lacking(config_of(run_dir))
    assert sorted(bring_back(config_of(run_dir))) == ["eval.jsonl", "ledger.jsonl", "metrics.jsonl"]
    after = contents(run_dir)
    assert after["metrics.jsonl"].startswith(before["metrics.jsonl"])
    assert after["config.yaml"] == before["config.yaml"]
    assert after[FILE_NAME] == contents(config.run_dir)[FILE_NAME]
    remote_of(run_dir).sync_terms()
    assert series(run_dir) == series(config.run_dir)
    assert [(line["step"], line["term"]) for line in series(run_dir)] == [
        (step, 1 + (step > 10)) for step in range(1, 21)
    ]


LINES = st.lists(st.integers(0, 9).map(lambda n: b"%d" % n), max_size=8)


@settings(max_examples=200, deadline=None)
@given(here=LINES, torn=st.sampled_from([b"", b"to"]), there=LINES, cut=st.sampled_from([b"", b"cu"]))
def test_lines_are_added_and_none_is_changed(
    tmp_path_factory: pytest.TempPathFactory, here: list[bytes], torn: bytes, there: list[bytes], cut: bytes
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    (path := folder / "here").write_bytes(before := b"".join(line + b"\n" for line in here) + torn)
    (folder / "there").write_bytes(b"".join(line + b"\n" for line in there) + cut)
    changed = records._add_lines(path, folder / "there")
    after = path.read_bytes()
    lacking = [line for line in there if line not in here]
    assert changed == bool(lacking)
    assert after.startswith(before)
    assert after.split(b"\n") == ([*here, torn] if not lacking else [*here, *[torn] * bool(torn), *lacking, b""])
    shutil.rmtree(folder)


def ledgers() -> dict[str, Ledger]:
    one = edited(Ledger(), 80)
    return {"none": Ledger(), "one": one, "two": edited(one, 400), "other": edited(one, 400, rows=8)}


@pytest.mark.parametrize(
    ("here", "there", "left"),
    [("none", "one", "one"), ("one", "two", "two"), ("two", "one", "two"), ("two", "two", "two"), ("other", "two", "")],
)
def test_a_ledger_is_continued_or_refused(tmp_path: Path, server: Proxy, here: str, there: str, left: str) -> None:
    run_dir, _ = a_run(tmp_path)
    config = elsewhere(run_dir, tmp_path)
    ledgers()[there].save(run_dir / FILE_NAME) if there != "one" else None
    term = open_term(run_dir)
    config.run_dir.mkdir(parents=True)
    ledgers()[here].save(config.run_dir / FILE_NAME)
    if left:
        bring_back(config)
        assert Ledger.load(config.run_dir / FILE_NAME) == ledgers()[left]
        return
    with pytest.raises(DataError, match="edit ledger goes two ways") as caught:
        bring_back(config)
    assert f"expected: {config.run_dir / FILE_NAME} to continue the newest term of s3://{BUCKET}" in str(caught.value)
    assert "entry 1: a skip from row 400 in the first, a skip from row 400 in the other" in str(caught.value)
    assert f"move {config.run_dir / FILE_NAME} away" in str(caught.value)
    (config.run_dir / FILE_NAME).unlink()
    bring_back(config)
    assert Ledger.load(config.run_dir / FILE_NAME) == ledgers()[there]
    assert term == 2


def test_an_edit_that_no_checkpoint_has_seen_goes_along_with_its_term(tmp_path: Path, server: Proxy) -> None:
    """Edited while the run was stopped; started; and then the machine is lost."""
    run_dir, commit = a_run(tmp_path)
    longer = edited(Ledger.load(run_dir / FILE_NAME), 120)
    longer.save(run_dir / FILE_NAME)
    open_term(run_dir, commit)
    config = elsewhere(run_dir, tmp_path)
    bring_back(config)
    assert Ledger.load(config.run_dir / FILE_NAME) == longer


def damage(run_dir: Path, commit: Commit, which: str) -> None:
    bucket = remote_of(run_dir).bucket
    of_list = which.endswith(LIST)
    keys = [key for key in bucket.list(f"checkpoints/{commit.name}/records") if key.endswith(LIST) == of_list]
    key = max(keys, key=lambda key: bucket.list(key)[key])
    content = bytearray(bucket.get(key) or b"")
    if which == f"future {LIST}":
        content = content.replace(b'"version":1', b'"version":2')
    else:
        content[len(content) // 2] ^= 1
    if which in ("missing", f"no {LIST}"):
        bucket.delete([key])
    else:
        bucket.put(key, bytes(content if which != "short" else content[:-1]))


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (LIST, "."),
        (f"no {LIST}", "no such object: it was copied by an older version, say"),
        (f"future {LIST}", "another format, or its hash does not hold"),
        ("file", r"metrics\.jsonl: .*xxh3"),
        ("short", r"metrics\.jsonl of [\d,]+ bytes"),
        ("missing", r"metrics\.jsonl of 0 bytes"),
    ],
)
def test_what_was_damaged_in_the_store_is_passed_over_for_the_one_before(
    tmp_path: Path, server: Proxy, which: str, found: str
) -> None:
    run_dir, commit = a_run(tmp_path)
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    train(run_dir, 1, 13, 20)
    new = copied(run_dir, 20, 1, commit, ledger=edited(Ledger.load(run_dir / FILE_NAME), 120).to_json())
    damage(run_dir, new, which)
    config = elsewhere(run_dir, tmp_path)
    bring_back(config)
    (told,) = remarks(config.run_dir)
    assert told.startswith(f"what was copied with {new.name} is passed over: the records beside checkpoint {new.name}")
    assert re.search(f"\n  found: {found}", told), told
    assert (config.run_dir / "metrics.jsonl").read_bytes() == metrics
    assert len(Ledger.load(config.run_dir / FILE_NAME).entries) == 2, "every checkpoint carries the ledger itself"
    damage(run_dir, commit, which)
    config = elsewhere(run_dir, tmp_path)
    assert bring_back(config) == [FILE_NAME]
    assert len(remarks(config.run_dir)) == 2


def test_a_store_without_a_checkpoint_to_believe_is_left_to_the_start(tmp_path: Path, server: Proxy) -> None:
    run_dir, commit = a_run(tmp_path)
    bucket = remote_of(run_dir).bucket
    bucket.put(f"checkpoints/{commit.name}/COMMIT.json", b"{}")
    config = elsewhere(run_dir, tmp_path)
    assert bring_back(config) == [FILE_NAME], "which the term has"
    (told,) = remarks(config.run_dir)
    assert told.startswith("no checkpoint in the object store tells how the run stood: no checkpoint of this run can")
    assert "/tmp/" not in told


def test_another_run_of_that_name_brings_nothing(tmp_path: Path, server: Proxy) -> None:
    run_dir, commit = a_run(tmp_path)
    open_term(run_dir, commit)
    config = elsewhere(run_dir, tmp_path)
    Lease(config.run_dir).open_term(None)
    with pytest.raises(CheckpointError, match="two different runs"):
        lacking(config)


def test_they_go_with_their_checkpoint_and_a_disk_that_lies_is_found(
    tmp_path: Path, server: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, commit = a_run(tmp_path)
    new = copied(run_dir, 20, 1, commit)
    remote = remote_of(run_dir)
    assert remote.prune(1, 1, lambda text: None) == [commit.name]
    assert {key.split("/")[1] for key in remote.bucket.list("checkpoints/")} == {new.name}
    assert remote.bucket.list(f"checkpoints/{new.name}/records/")
    real = records._record_of
    monkeypatch.setattr(records, "_record_of", lambda path, file: real(run_dir / "config.yaml", file))
    with pytest.raises(
        CheckpointError, match=r"records beside [\s\S]*other bytes of ledger.jsonl than a moment before"
    ):
        push(remote, new.name)


KILLED = """
import sys
from pathlib import Path
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.records import push
from tests.faults.test_restore import remote_of
run_dir = Path(sys.argv[1])
commit, remote = CheckpointStore(run_dir / "checkpoints").list()[-1], remote_of(run_dir)
remote.push(commit, 0, 1)
push(remote, commit.name)
remote.commit(commit, 1)
push(remote, commit.name)  # the answer to the commit was lost, say, and the copy is made again
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.processes
def test_killed_at_any_request_they_are_those_of_a_checkpoint(tmp_path: Path, server: Proxy) -> None:
    at, killed = 1, True
    while killed:
        run_dir, old = a_run(tmp_path)
        states = [contents(run_dir)]
        train(run_dir, 1, 13, 20)
        save(run_dir, 20, 1, old.name)
        states.append(contents(run_dir))
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(run_dir)])
        server.forget()
        server.victim = process.pid
        server.fate = lambda request, at=at: "done-kill" if request.number == at else None
        killed = process.wait() != 0
        assert not killed or process.returncode == -9
        server.forget()
        config = elsewhere(run_dir, tmp_path)
        bring_back(config)
        assert contents(config.run_dir) in states, f"killed at request {at}"
        assert remarks(config.run_dir) == []
        at += 1
    assert at > 20
    assert json.loads((config.run_dir / "metrics.jsonl").read_bytes().splitlines()[-1])["step"] == 20
