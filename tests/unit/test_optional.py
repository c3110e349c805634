"""Packages that some recipes need are missed by name before anything is read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from data_pipeline.inputs import pin
from data_pipeline.optional import require
from fmscale.errors import ConfigError


def test_a_missing_package_and_its_remedy() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^step x needs the package nowhere\n  expected: what `pip install 'fmscale\[data\]'` brings\n"
        r"  found: No module named 'nowhere'\n  do: pip install 'fmscale\[data\]'$",
    ):
        require("nowhere.at.all", "step x")
    assert require("json.decoder", "step x").JSONDecoder


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("a.warc.gz", "fastwarc.warc", "a WARC input needs the package fastwarc"),
        ("a.wet", "resiliparse.parse.encoding", "a WARC input needs the package resiliparse"),
        ("a.parquet", "pyarrow.parquet", "a Parquet input needs the package pyarrow"),
    ],
)
def test_inputs_are_not_pinned_without_what_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, words: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=words):
        pin([str(tmp_path)])


def test_urls_are_not_listed_without_what_opens_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        ConfigError, match=r"inputs at gs:// cannot be read here\n.*\n  found: ImportError: .*\n  do: .*gcsfs"
    ):
        pin(["gs://bucket/a.jsonl"])
    with pytest.raises(ConfigError, match=r"inputs at nosuch:// cannot be read here\n.*\n  found: ValueError: "):
        pin(["nosuch://bucket/a.jsonl"])
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match="an input at s3:// needs the package fsspec"):
        pin(["s3://bucket/a.jsonl"])
