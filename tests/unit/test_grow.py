"""A corpus that grows: the chunks of both, one after another, and nothing that was there changes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline import grow as grow_module
from data_pipeline.grow import grow
from fmscale import durable
from fmscale.corpus.shards import Corpus
from fmscale.corpus.verify import survey
from fmscale.errors import ConfigError, DataError, MachineError
from tests.corpora import damage, make_corpus
from tests.integration.test_edits import fmscale, succeeds


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_corpus(tmp_path / "base", chunks=5)
    return tmp_path / "base"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    make_corpus(tmp_path / "other", chunks=3, heldout=2, seed=1)
    return tmp_path / "other"


def chunks(path: Path, split: str, generation: int | None = None) -> list[bytes]:
    corpus = Corpus.open(path, split, generation=generation)
    return [corpus.tokens(n).tobytes() + corpus.docs(n).tobytes() for n in range(corpus.chunks)]


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("links", [True, False])
def test_it_has_the_chunks_of_both(base: Path, other: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (other / "inputs.csv").write_text("file,bytes\n")
    before = {split: (chunks(base, split), chunks(other, split)) for split in ("train", "heldout")}
    files = tree(base), tree(other)
    if not links:

        def no_link(source: Path, target: Path) -> None:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

        monkeypatch.setattr(os, "link", no_link)
    assert grow(base, other) == base / "gen-0001"
    monkeypatch.undo()
    assert (base / "gen-0001" / "inputs.csv").read_text() == "file,bytes\n"
    for split, (own, added) in before.items():
        assert chunks(base, split) == own + added
        assert chunks(base, split, generation=0) == own
    assert tree(other) == files[1]
    assert {name: content for name, content in tree(base).items() if not name.startswith("gen-")} == files[0]
    shutil.rmtree(other)
    survey(base).check()


def test_again_adds_nothing_and_a_kill_leaves_nothing_that_counts(base: Path, other: Path, tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys; from data_pipeline import grow; from fmscale import durable; bring = grow._bring\n"
        "grow._bring = lambda *given: (bring(*given), os.kill(os.getpid(), 9))\n"
        "grow.grow(*map(pathlib.Path, sys.argv[1:]))"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(base), str(other)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(chunks(base, "train")) == 5
    make_corpus(tmp_path / "third", chunks=2, seed=2)
    added = [grow(base, tmp_path / name).name for name in ("other", "other", "third", "other", "third")]
    assert added == ["gen-0001", "gen-0001", "gen-0002", "gen-0001", "gen-0002"]
    assert len(chunks(base, "train")) == 5 + 3 + 2
    survey(base).check()


def test_what_does_not_fit_is_refused_and_nothing_is_left(base: Path, other: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path / "chunks", chunks=3, chunk_tokens=512)
    make_corpus(tmp_path / "words", chunks=3, pieces=461)
    shutil.copytree(other, tmp_path / "damaged")
    damage(tmp_path / "damaged", 1)
    shutil.copytree(other, tmp_path / "grown")
    grow(tmp_path / "grown", tmp_path / "base")
    before = tree(base)
    for name, error, message in (
        (
            "chunks",
            DataError,
            r"its chunk_tokens does not fit\n  expected: .*256.*64}\n  found: .*512",
        ),
        ("words", DataError, "its tokenizer does not fit"),
        ("damaged", DataError, "damage"),
        ("absent", DataError, "no finished corpus here"),
        ("base", ConfigError, r"has not grown itself\n  expected: two corpora.*\n  found: .*base twice\n  do: prepare"),
        ("grown", ConfigError, r"found: .*grown, of 2 generations"),
    ):
        with pytest.raises(error, match=message):
            grow(base, tmp_path / name)
        assert tree(base) == before, name


def test_a_full_disk_and_another_command_are_told(
    base: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, manifest: object, directory: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(grow_module, "_bring", full)
        with pytest.raises(MachineError, match=r"the corpus is as it was\n  expected: room for [\d,]+ bytes"):
            grow(base, other)
    bring = grow_module._bring
    make_corpus(tmp_path / "third", chunks=2, seed=2)

    def overtaken(source: Path, manifest: object, directory: Path) -> None:
        bring(source, manifest, directory)  # type: ignore[arg-type]
        monkeypatch.setattr(grow_module, "_bring", bring)
        monkeypatch.setattr(durable, "temporary_name", lambda path: path.with_name(f".{path.name}.another.tmp"))
        grow(base, tmp_path / "third")

    monkeypatch.setattr(grow_module, "_bring", overtaken)
    with pytest.raises(DataError, match=r"the corpus grew meanwhile.*\n.*\n  found: a directory with manifest\.json"):
        grow(base, other)
    assert len(chunks(base, "train")) == 5 + 2
    assert grow(base, other).name == "gen-0002"
    (base / "gen-0003").mkdir()
    (base / "gen-0003" / "a file").touch()
    make_corpus(tmp_path / "fourth", chunks=2, seed=3)
    with pytest.raises(DataError, match=r"found: a directory without manifest\.json\n  do: run .* again; what"):
        grow(base, tmp_path / "fourth")
    assert (base / "gen-0003" / "a file").exists()
    assert not list(base.glob(".gen-*"))
    survey(base).check()


def test_the_command(base: Path, other: Path) -> None:
    out = succeeds("data", "grow", str(base), str(other))
    assert f"{base}/gen-0001: {other} is a further generation of {base}" in out
    assert "`fmscale order edit RUN generation SOURCE`" in out
    assert fmscale("data", "grow", str(base), str(base))[0] == 2
