"""S1, S2, S3, S5: no file that we read, and no name of one, runs anything or reaches beyond itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
import yaml

from data_pipeline.inputs import pin
from data_pipeline.pipeline import Recipe, load_recipe
from data_pipeline.quality_model import QualityModel
from data_pipeline.run import prepare
from fmscale.config import from_yaml, load
from fmscale.corpus.ledger import Ledger
from fmscale.corpus.shards import Corpus
from fmscale.corpus.sources import open_run_data
from fmscale.corpus.verify import verify
from fmscale.durable import canonical_json
from fmscale.errors import FmscaleError
from fmscale.foreign_tokenizer import ForeignTokenizer, bring
from fmscale.observe.events import read_events
from fmscale.observe.metrics import series
from fmscale.observe.terms import digest
from fmscale.tokenizer import Tokenizer
from fmscale.training.checkpoint_format import KINDS, MARKER
from tests.checkpoints import SHAPES, store_of, two_checkpoints
from tests.corpora import make_corpus
from tests.crawl_files import read_all
from tests.security.canary import Payload, nothing_runs, poisons
from tests.web_server import web_server
from tests.word_corpora import tokenizer

POISONS = ("pickle", "torch zip", "torch legacy", "yaml", "npy")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.mark.parametrize("kind", POISONS)
def test_the_poisons_are_real(tmp_path: Path, canary: Path, kind: str) -> None:
    """In a reader that trusts them they run: else what follows would show nothing."""
    poison = poisons(canary, tmp_path)[kind]
    trusting: dict[str, Callable[[], Any]] = {
        "pickle": lambda: pickle.loads(poison),  # noqa: S301
        "torch zip": lambda: torch.load(io.BytesIO(poison), weights_only=False),
        "torch legacy": lambda: torch.load(io.BytesIO(poison), weights_only=False),
        "yaml": lambda: yaml.unsafe_load(poison.decode()),
        "npy": lambda: np.load(io.BytesIO(poison), allow_pickle=True),
    }
    with contextlib.suppress(Exception):  # what the command returned is no model, and no array
        trusting[kind]()
    assert canary.exists()


@pytest.mark.parametrize("kind", POISONS)
def test_no_file_of_a_checkpoint_runs_anything(tmp_path: Path, canary: Path, kind: str) -> None:
    run = tmp_path / "run"
    _, new = two_checkpoints(run)
    directory, poison = run / "checkpoints" / new.name, poisons(canary, tmp_path)[kind]
    for path in [*sorted(directory.iterdir()), *sorted((run / "lease").glob("term-*"))]:
        whole = path.read_bytes()
        path.write_bytes(poison)
        with nothing_runs(canary), contextlib.suppress(FmscaleError):
            assert store_of(run).newest_valid(lambda text: None) != new, path.name
        path.write_bytes(whole)
    # With every hash above it made to fit, as whoever may write there can: bytes are numbers then, never objects.
    data, record, marker = (directory / name for name in ("rank-00000.safetensors", "rank-00000.json", MARKER))
    data.write_bytes(poison.ljust(data.stat().st_size))
    _forge(data, record, "data")
    _forge(record, marker, "ranks")
    commit = next(commit for commit in store_of(run).list() if commit.step == new.step)
    with nothing_runs(canary), contextlib.suppress(FmscaleError):
        reader = store_of(run).open(commit)
        for name in SHAPES:
            for moment in KINDS:
                reader.whole(name, moment)


def _forge(path: Path, above: Path, key: str) -> None:
    """Have the file `above`, which vouches for `path`, vouch for what stands there now."""
    content, fields = path.read_bytes(), json.loads(above.read_bytes())
    new = {"file": path.name, "bytes": len(content), "hash": xxhash.xxh3_128_hexdigest(content)}
    fields[key] = [new, *fields[key][1:]] if isinstance(fields[key], list) else new
    if fields.pop("commit_hash", None):
        fields["commit_hash"] = digest(fields)
    above.write_bytes(canonical_json(fields))


@pytest.mark.parametrize("kind", POISONS)
def test_no_file_of_a_corpus_runs_anything(tmp_path: Path, canary: Path, kind: str) -> None:
    make_corpus(tmp_path / "corpus")
    poison = poisons(canary, tmp_path)[kind]
    files = sorted(path for path in (tmp_path / "corpus").iterdir() if path.is_file())
    assert {path.suffix for path in files} == {".tar", ".bin", ".json", ".jsonl", ".model"}

    def read() -> None:
        corpus = Corpus.open(tmp_path / "corpus")
        for chunk in range(11):
            corpus.tokens(chunk)
            corpus.docs(chunk)
        Tokenizer.load(corpus.tokenizer_path)
        verify(tmp_path / "corpus")

    for path in files:
        whole = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(poison)
        with nothing_runs(canary), pytest.raises(FmscaleError):
            read()
        path.write_bytes(whole)
    with nothing_runs(canary):
        read()


@pytest.mark.parametrize("kind", POISONS)
def test_no_other_file_runs_anything(tmp_path: Path, canary: Path, kind: str) -> None:
    """Tokenizers, quality models, ledgers, settings, recipes, records of a run."""
    poison = poisons(canary, tmp_path)[kind]
    names = ("tokenizer.model", "tokenizer.json", "quality.model", "ledger.jsonl", "config.yaml", "recipe.yaml")
    for name in (*names, "metrics.jsonl", "events.jsonl"):
        (tmp_path / name).write_bytes(poison)
    readers: list[Callable[[], Any]] = [
        lambda: Tokenizer.load(tmp_path / "tokenizer.model"),
        lambda: ForeignTokenizer(poison),
        lambda: bring(tmp_path / "tokenizer.json"),
        lambda: bring(tmp_path / "tokenizer.model"),
        lambda: QualityModel.load(tmp_path / "quality.model"),
        lambda: Ledger.load(tmp_path / "ledger.jsonl"),
        lambda: load([tmp_path / "config.yaml"]),
        lambda: from_yaml(poison.decode("latin1")),
        lambda: load_recipe([tmp_path / "recipe.yaml"]),
    ]
    for read in readers:
        with nothing_runs(canary), pytest.raises(FmscaleError):
            read()
    with nothing_runs(canary), contextlib.suppress(FmscaleError, UnicodeDecodeError):
        assert list(series(tmp_path)) == []
        assert list(read_events(tmp_path)) == []


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "cbor", "cls", "jpg", "exe"])
def test_members_of_a_tar_are_no_objects(tmp_path: Path, canary: Path, extension: str) -> None:
    """webdataset would decode some of them by unpickling (S3); here they are counted as no text."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in ((f"1.{extension}", pickle.dumps(Payload(canary))), ("2.txt", b"a text")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with nothing_runs(canary):
        documents = read_all(tmp_path / "a.tar")
    assert [(document.text, document.dropped) for document in documents if not document.dropped] == [("a text", "")]
    assert [document.dropped for document in documents if document.dropped] == ["not_text"]


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"") -> tuple[Any, Any]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, io.BytesIO(content)


def test_a_tar_reaches_nothing_outside_of_itself(tmp_path: Path) -> None:
    """S5. Names that climb, absolute ones, links to a secret, devices: nothing is extracted, nothing is followed."""
    (tmp_path / "secret.txt").write_text("a secret of this host")
    climbing, absolute = "../../climbed.txt", str(tmp_path / "absolute.txt")
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as archive:
        for info, content in (
            _member(climbing, content=b"climbs"),
            _member(absolute, content=b"absolute"),
            _member("link.txt", tarfile.SYMTYPE, str(tmp_path / "secret.txt")),
            _member("hard.txt", tarfile.LNKTYPE, str(tmp_path / "secret.txt")),
            _member("zero.txt", tarfile.CHRTYPE),
            _member("pipe.txt", tarfile.FIFOTYPE),
        ):
            archive.addfile(info, content)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    documents = read_all(tmp_path / "in")
    assert [document.text for document in documents if not document.dropped] == ["climbs", "absolute"]
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "climbed.txt").exists()


COMMANDS = [
    "pipe:{}",
    "pipe:{} |",
    "pipe://{}",
    "|{}",
    "$({})",
    "`{}`",
    "x; {}",
    "ssh://host/{}",
    "shell:{}",
    "{{a,{}}}",
]


@pytest.mark.parametrize("pattern", COMMANDS)
def test_no_name_of_an_input_runs_anything(
    tmp_path: Path, canary: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2. Nor do the variables by which webdataset rewrites names."""
    command = f"touch {canary}"
    monkeypatch.setenv("GOPEN_REWRITE", f"/=pipe:{command} ")
    monkeypatch.setenv("USE_AIS_FOR", "http:s3:file")
    monkeypatch.setenv("GOPEN_VERBOSE", "1")
    monkeypatch.chdir(tmp_path)
    name = pattern.format(command)
    with nothing_runs(canary), pytest.raises(FmscaleError):
        pin([name])
    with nothing_runs(canary), pytest.raises(FmscaleError):
        open_run_data(load([], ["run.name=x", f'data.sources.a.corpus="{name}"']))
    with nothing_runs(canary), pytest.raises(FmscaleError):
        Tokenizer.load(name)


def test_names_that_a_server_lists_run_nothing(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer().model)
    with web_server() as site:
        site.files[f"raw/pipe:touch {canary.name}.jsonl"] = b'{"text": "a text"}\n'
        site.files[f"raw/$(touch {canary.name}).txt"] = b"another one"
        recipe = Recipe(inputs=[site.url("raw/")], output="corpus", tokenizer="tokenizer.model", heldout_fraction=0.0)
        with nothing_runs(canary), contextlib.suppress(FmscaleError):
            prepare(recipe, workers=0)
    assert not (tmp_path / canary.name).exists()
    assert os.listdir(tmp_path).count(canary.name) == 0
