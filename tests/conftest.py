"""Fixtures that several kinds of tests share."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.runs import ON_RAY, Run
from tests.word_corpora import corpus, texts

settings.register_profile("untimed", deadline=None)  # a busy machine is no counterexample
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus for real runs; read-only."""
    directory = tmp_path_factory.mktemp("corpora") / "words"
    corpus(directory, texts(400), texts(40, first=1000), chunk_tokens=1024)
    return directory


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def reference_run(runs_root: Path, words: Path) -> Run:
    """Two ranks of ZeRO-1 on Ray, undisturbed: what killed runs are compared with."""
    run = Run(runs_root, "reference", words, ON_RAY)
    run.train()
    return run
