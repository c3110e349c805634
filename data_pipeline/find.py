"""What a recipe's inputs name: patterns -> files, local or in a store, with names that do not say where they stand.

    raw/a.jsonl.gz   raw/   raw/**/*.log   s3://bucket/crawl/*.warc.gz   https://host/a.parquet   hf:NAME?split=train

A file named by itself or by a glob is read whatever its suffix, as plain text if that says nothing; of a directory only
files of a known kind are read, and the others are counted. So are corpora of ours that stand below an input.
"""

from __future__ import annotations

import glob
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import hub, store
from data_pipeline.own_output import glob_root, holds_corpus
from fmscale.errors import DataError

SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson"),
    "text": (".txt", ".text", ".md", ".rst"),
    "warc": (".warc", ".wet"),
    "parquet": (".parquet",),
    "tar": (".tar",),
}
COMPRESSIONS = (".gz", ".zst")
LINK = "symbolic link to a directory"
CORPUS = "corpus of ours"


@dataclass(frozen=True)
class Found:
    path: str
    """Absolute, or a URL."""
    name: str
    bytes: int
    stamp: str | None = None
    """What a store says of the file's content; None of a local file."""
    kind: tuple[str, str] | None = None
    """(kind, compression) where the name does not say them."""


def find(patterns: Sequence[str]) -> tuple[list[Found], Counter[str]]:
    """The files in the order of the patterns, names sorted below each, and the suffixes of what was left out."""
    by_path: dict[str, Found] = {}
    left_out: Counter[str] = Counter()
    for pattern in patterns:
        matches = _matches(pattern, left_out)
        for match in sorted(matches, key=lambda match: match.name):
            by_path.setdefault(match.path, match)
    return list(by_path.values()), left_out


def kind_of(name: str) -> tuple[str, str] | None:
    """(kind, compression) by suffix, None where the suffix says nothing."""
    name = name.lower()
    if name.endswith(".tgz"):
        return "tar", ".gz"
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    stem = name.removesuffix(compression)
    kind = next((kind for kind, suffixes in SUFFIXES.items() if stem.endswith(suffixes)), None)
    return None if kind is None or (kind == "parquet" and compression) else (kind, compression)


def kind_or_text(name: str) -> tuple[str, str]:
    """(kind, compression) of a file that is to be read whatever its suffix."""
    return kind_of(name) or ("text", next((s for s in COMPRESSIONS if name.endswith(s)), ""))


def unreadable(kind: str, path: str, error: OSError) -> DataError:
    return DataError(
        f"an input {kind} cannot be read",
        expected=f"a readable {kind}",
        found=f"{path}: {error.strerror}",
        do="mend its permissions (or the link that it is), or leave it out of inputs",
    )


def _matches(pattern: str, left_out: Counter[str]) -> list[Found]:
    if pattern.startswith(hub.SCHEME) and not pattern.startswith(hub.SCHEME + "//"):
        return [Found(shard.spec, shard.name, shard.bytes, shard.stamp, ("hub", "")) for shard in hub.shards(pattern)]
    pattern = pattern.removeprefix("file://")
    if store.is_url(pattern):
        return _in_store(pattern, left_out)
    if os.path.isdir(pattern):
        pairs = _directory(pattern, left_out)
    elif os.path.isfile(pattern):
        pairs = [(pattern, os.path.basename(pattern))]
    else:
        pairs = _glob(pattern, left_out)
    return [Found(os.path.abspath(path), name.replace(os.sep, "/"), _size(path)) for path, name in pairs]


def _in_store(url: str, left_out: Counter[str]) -> list[Found]:
    entries, is_directory = store.listing(url)
    known = [entry for entry in entries if not is_directory or kind_of(entry.name)]
    others = Counter(
        posixpath.splitext(entry.name)[1] or "no suffix"
        for entry in entries
        if is_directory and not kind_of(entry.name)
    )
    if is_directory and not known:
        raise _holds_no_text(store.shown(url), others)
    left_out.update(others)
    if not known:
        raise _matches_nothing(store.shown(url))
    return [Found(entry.url, entry.name, entry.bytes, entry.stamp) for entry in known]


def _directory(root: str, left_out: Counter[str]) -> list[tuple[str, str]]:
    """Every file of a known kind below `root`; hidden files and directories are no input."""
    known: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    for folder, folders, files in os.walk(root, onerror=_cannot_list):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # Not followed: a link may lead back up, or to files that are listed already. Name its target as an input.
        if links := sum(os.path.islink(os.path.join(folder, name)) for name in folders):
            others[LINK] += links
        corpora = {
            name
            for name in folders
            if not os.path.islink(os.path.join(folder, name)) and holds_corpus(os.path.join(folder, name))
        }
        if corpora:
            others[CORPUS] += len(corpora)
            folders[:] = [name for name in folders if name not in corpora]
        for file in files:
            if file.startswith("."):
                continue
            if kind_of(file):
                known.append((os.path.join(folder, file), os.path.relpath(os.path.join(folder, file), root)))
            else:
                others[Path(file).suffix or "no suffix"] += 1
    if not known:
        raise _holds_no_text(root, others)
    left_out.update(others)
    return known


def _glob(pattern: str, left_out: Counter[str]) -> list[tuple[str, str]]:
    root = glob_root(pattern)
    is_corpus: dict[str, bool] = {"": False}  # by directory below the root
    pairs: list[tuple[str, str]] = []
    for path in glob.glob(pattern, recursive=True):
        if not os.path.isfile(path):
            continue
        name = os.path.relpath(path, root)
        above = [str(parent) for parent in Path(name).parents if str(parent) != "."]
        for folder in above:
            if folder not in is_corpus:
                is_corpus[folder] = holds_corpus(os.path.join(root, folder))
        if not any(is_corpus[folder] for folder in above):
            pairs.append((path, name))
    corpora = sum(is_corpus.values())
    if corpora and not pairs:
        raise _only_corpora(pattern)
    if not pairs:
        raise _matches_nothing(f"{pattern} (seen from {os.getcwd()})")
    if corpora:
        left_out[CORPUS] += corpora
    return pairs


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise unreadable("file", path, error) from error


def _cannot_list(error: OSError) -> None:
    raise unreadable("directory", str(error.filename), error) from error


def _holds_no_text(root: str, others: Counter[str]) -> DataError:
    suffixes = [suffix for known in SUFFIXES.values() for suffix in known]
    return DataError(
        "an input directory holds no text",
        expected=f"files that end in {' '.join(suffixes)}, plain or (but for .parquet) .gz or .zst",
        found=f"{root} with {', '.join(f'{count} {kind}' for kind, count in sorted(others.items())) or 'nothing'}",
        do="name the files by a glob, for example 'inputs=[raw/**/*.log]': each then is one plain-text document",
    )


def _only_corpora(pattern: str) -> DataError:
    return DataError(
        "all that an input matches stands in finished corpora, which are no raw text",
        expected="a glob that matches files outside of them",
        found=pattern,
        do="where the files of a corpus are meant, such as CORPUS/dropped/*.jsonl.zst, name that corpus in the glob",
    )


def _matches_nothing(found: str) -> DataError:
    return DataError(
        "an input matches no file",
        expected="a file, a directory or a glob such as raw/**/*.jsonl.gz",
        found=found,
        do="check the path; quote a glob, so that the shell leaves it alone",
    )
