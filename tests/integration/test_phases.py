"""Recipes of several phases: what passes over the corpus take out is counted, kept for people, and nobody's order."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from data_pipeline import holdout, line_dedup, passes, run, scan
from data_pipeline.clusters import clusters
from data_pipeline.document import Document, change, drop
from data_pipeline.minhash import signatures
from data_pipeline.pipeline import Recipe
from data_pipeline.rule import batches
from data_pipeline.run import prepare
from fmscale.corpus.manifest import Manifest
from fmscale.errors import ConfigError, DataError, MachineError
from tests.integration.test_prepare import digests, recipe_of
from tests.raw_text import unlike

HERE = __name__
STEPS: list[Any] = [
    f"{HERE}:no_sevens",
    "exact_dedup",
    f"{HERE}:shout",
    "exact_dedup",
    {f"{HERE}:no_sevens": {"of": 5}},
]


def no_sevens(documents: Iterable[Document], *, of: int = 7) -> Iterator[Document]:
    for document in documents:
        yield drop(document, f"no_sevens/{of}", of) if int(document.id[1:]) % of == 0 else document


def shout(documents: Iterable[Document]) -> Iterator[Document]:
    """Makes equal what differs in case alone, so that the second pass finds it."""
    for document in documents:
        yield change(document, document.text.upper(), **{"shout/letters": sum(map(str.islower, document.text))})


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 documents in three files; every tenth has the text of the one before, every eleventh in other case."""
    directory = tmp_path_factory.mktemp("phases") / "raw"
    directory.mkdir()
    texts: list[str] = []
    for number in range(600):
        fresh = unlike(number)
        texts.append(texts[-1] if number % 10 == 9 else texts[-1].title() if number % 11 == 10 else fresh)
    for part in range(3):
        lines = [
            json.dumps({"id": f"d{n}", "text": texts[n], "group": n % 5}) for n in range(200 * part, 200 * part + 200)
        ]
        (directory / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def expected(raw: Path) -> tuple[Counter[str], set[str]]:
    """(dropped by reason, ids that are left), by the recipe read aloud."""
    documents = [json.loads(line) for path in sorted(raw.iterdir()) for line in path.read_text().splitlines()]
    reasons: Counter[str] = Counter()
    seen: set[str] = set()
    left = set()
    for document in documents:
        if int(document["id"][1:]) % 7 == 0:
            reasons["no_sevens/7"] += 1
        elif document["text"].upper() in seen:  # word for word by the first pass, in other case by the second
            reasons["duplicate"] += 1
        else:
            seen.add(document["text"].upper())
            if int(document["id"][1:]) % 5 == 0:
                reasons["no_sevens/5"] += 1
            else:
                left.add(document["id"])
    return reasons, left


def make(raw: Path, output: Path, **changes: Any) -> Manifest:
    return prepare(recipe_of(raw, output, **{"steps": STEPS, "decontaminate_ngram": 0, **changes}), workers=0)


@pytest.fixture(scope="module")
def reference(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reference") / "c"
    make(raw, output)
    return output


def test_every_document_has_its_reason_or_its_tokens(raw: Path, reference: Path) -> None:
    reasons, left = expected(raw)
    manifest = Manifest.load(reference)
    assert manifest.counts["dropped"] == dict(reasons)
    assert (manifest.counts["in"], manifest.counts["out"]) == (600, len(left))
    assert manifest.counts["changed"]["shout/letters"] > 1000


def test_the_table_of_files_adds_up(reference: Path) -> None:
    counts = Manifest.load(reference).counts
    rows = list(csv.DictReader((reference / "inputs.csv").open()))
    assert [row["file"] for row in rows] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert [int(row["records"]) for row in rows] == [200, 200, 200]
    assert sum(int(row["kept"]) for row in rows) == counts["out"]
    for reason, count in counts["dropped"].items():
        assert sum(int(row[reason]) for row in rows) == count


def test_dropped_documents_are_kept_if_asked(raw: Path, reference: Path, tmp_path: Path) -> None:
    manifest = make(raw, tmp_path / "c", keep_dropped=True, heldout_fraction=0.2, decontaminate_ngram=13)
    kept = [
        json.loads(line)
        for path in sorted((tmp_path / "c/dropped").iterdir())
        for line in zstandard.open(path, "rt").read().splitlines()
    ]
    assert Counter(line["dropped"] for line in kept) == manifest.counts["dropped"]
    assert len({line["id"] for line in kept}) == len(kept) == 600 - manifest.counts["out"]
    assert all(line["text"] and line["source"] for line in kept)
    assert {line["found"] for line in kept if line["dropped"] == "no_sevens/7"} == {7}
    assert not (reference / "dropped").exists()


def test_bytes_do_not_depend_on_tasks_at_a_time(raw: Path, reference: Path, tmp_path: Path) -> None:
    """Nor on keeping what was dropped, but for what is kept."""
    make(raw, tmp_path / "c", keep_dropped=True)
    kept = {name: digest for name, digest in digests(tmp_path / "c").items() if not name.startswith("dropped/")}
    assert kept == digests(reference)


KILLED = """
import os, signal, sys
from data_pipeline.pipeline import Recipe
from data_pipeline.run import prepare
import webdataset
recipe = Recipe(**{settings})
kills, fsync = 0, os.fsync
def deadly(limit):
    def count(handle, calls=[0]):
        calls[0] += 1
        if calls[0] == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)
    return count
while True:
    child = os.fork()
    if child == 0:
        os.fsync = deadly(2 + 3 * kills)
        prepare(recipe)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
    kills += 1
print(kills, status)
"""


@pytest.mark.processes
def test_kill_9_in_every_phase(raw: Path, reference: Path, tmp_path: Path) -> None:
    recipe = recipe_of(raw, tmp_path / "c", steps=STEPS, decontaminate_ngram=0, keep_dropped=True)
    settings = {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}
    code = KILLED.replace("{settings}", str(settings))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    kills, status = map(int, ended.stdout.split())
    assert status == 0, ended.stderr
    assert kills >= 10
    make(raw, tmp_path / "undisturbed", keep_dropped=True)
    assert digests(tmp_path / "c") == digests(tmp_path / "undisturbed")


def test_damaged_input_is_given_up_listed_and_limited(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    made = [{"id": f"d{n}", "group": "g", "text": unlike(n)} for n in range(1000, 1100)]
    whole = gzip.compress(b"".join(json.dumps(record).encode() + b"\n" for record in made))
    (tmp_path / "raw/bad.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError,
        match=r"damaged\n  expected: .*at most 1\.00% of input damaged \(max_bad_input\)\n.*bad\.jsonl\.gz.*bytes\n",
    ):
        make(tmp_path / "raw", tmp_path / "c")
    manifest = make(tmp_path / "raw", tmp_path / "c", max_bad_input=0.5)
    lost = manifest.counts["quarantined"]
    assert [(each["file"], each["start"], each["stop"]) for each in lost] == [("bad.jsonl.gz", 0, len(whole) // 2)]
    assert manifest.counts["in"] == 600, "none of its records is used"
    (tmp_path / "raw/bad.jsonl.gz").write_bytes(whole)
    assert make(tmp_path / "raw", tmp_path / "d").counts["in"] == 700


def test_a_full_disk_loses_nothing(raw: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of 600 kB, then the same with room: the same bytes, and what was done is not done again."""
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", place], check=False).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(
            MachineError, match=r"could not be written; what is done is kept\n.*\n.*No space left.*\n  do: make room"
        ):
            make(raw, place / "c")
        assert not (place / "c/manifest.json").exists()
        done = {path.name: path.stat().st_mtime_ns for path in place.glob("c/.work/*/scan-*.npz")}
        assert done
        subprocess.run(["mount", "-o", "remount,size=20m", place], check=True)
        make(raw, place / "c")
        assert digests(place / "c") == digests(reference)
    finally:
        subprocess.run(["umount", place], check=True)


def test_no_more_is_held_out_than_workers_can_hold(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"heldout_fraction": 0.2, "decontaminate_ngram": 13, "heldout_by": "document"}
    monkeypatch.setattr(holdout, "MAX_GRAMS", 100)
    message = (
        r"more is held out than .*\n  expected: at most 100 n-grams.*\n.*0\.2\)\n  do: set heldout_fraction to 0\.00"
    )
    with pytest.raises(ConfigError, match=message):
        make(raw, tmp_path / "c", **changes)
    assert not (tmp_path / "c").exists(), "before anything is read"
    monkeypatch.setattr("data_pipeline.run.check_size", lambda recipe, size: None)
    with pytest.raises(DataError, match=r"more is held out than can be compared.*\n.*100 n-grams"):
        make(raw, tmp_path / "c", **changes)


def test_near_duplicates_and_repeated_lines_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of every pass: what MinHash and lines take out is what their own modules say of all texts at once."""
    directory = tmp_path / "near"
    directory.mkdir()
    menu = "Home | About us | Contact the editors | Legal notice"
    rng = np.random.default_rng(0)
    texts: list[str] = []
    for number in range(240):
        words = unlike(number, 120).split()
        if number % 4 == 3 and "\n" in texts[-1]:  # nearly the one before: two words in a hundred
            words = texts[-1].splitlines()[1].split()
            for place in rng.integers(0, len(words), 2):
                words[place] = "changed"
        texts.append(f"{menu}\n{' '.join(words)}" if number % 6 else menu)
    for part in range(3):
        lines = [json.dumps({"id": f"d{n}", "text": texts[n]}) for n in range(80 * part, 80 * part + 80)]
        (directory / f"{part}.jsonl").write_text("\n".join(lines))
    steps = ["exact_dedup", "line_dedup", {"minhash_dedup": {"bands": 20, "rows": 5}}]
    changes: dict[str, Any] = {"steps": steps, "heldout_by": "document", "keep_dropped": True}
    manifest = make(directory, tmp_path / "c", **changes)
    exact = list(dict.fromkeys(texts))
    stripped = [text.removeprefix(f"{menu}\n") if at else text for at, text in enumerate(exact)]
    keys = signatures(stripped, bands=20, rows=5)
    edges = [(a, b) for b in range(len(stripped)) for a in range(b) if (keys[a] == keys[b]).any()]
    labels = clusters(len(stripped), [np.array(edges, np.uint64).reshape(-1, 2)])
    near = int((labels != np.arange(len(labels))).sum())
    assert near > 20
    dropped = manifest.counts["dropped"]
    assert {reason: dropped[reason] for reason in ("duplicate", "near_duplicate")} == {
        "duplicate": len(texts) - len(exact),
        "near_duplicate": near,
    }
    assert manifest.counts["changed"]["line_dedup/lines"] == len(exact) - 1
    again = make(directory, tmp_path / "d", **changes, task_bytes=1 << 20)
    assert again.counts == manifest.counts, "tasks decide nothing"
    # Nor does it how much of a task is held at once.
    monkeypatch.setattr(scan, "batches", functools.partial(batches, characters=2000))
    monkeypatch.setattr(passes, "RUN_DOCUMENTS", 5)
    monkeypatch.setattr(passes, "RUN_LINES", 7)
    monkeypatch.setattr(line_dedup, "_COUNTED_AT_ONCE", 3)
    monkeypatch.setattr(holdout, "RUN_GRAMS", 40)
    monkeypatch.setattr(passes, "LINE_PARTITION_BYTES", 20_000)
    files: set[str] = set()
    join = run.join
    monkeypatch.setattr(
        run, "join", lambda work, phase: [files.update(p.name for p in work.directory.iterdir()), join(work, phase)]
    )
    make(directory, tmp_path / "e", **changes, task_bytes=1 << 20)
    assert digests(tmp_path / "e") == digests(tmp_path / "d")
    for phase in range(4):
        assert len([name for name in files if re.fullmatch(rf"keys-{phase}-00000-0\d\d\.bin", name)]) > 3, phase
    assert len([name for name in files if name.startswith("part-1-")]) > 1
