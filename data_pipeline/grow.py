"""A corpus grows by another one, whose shards become its next generation: what was there keeps its numbers.

    grow(Path("data/web"), Path("data/web-october"))      # data/web/gen-0001, the same bytes, linked where they can be

The other corpus is prepared with the tokenizer and the chunk sizes of the first, and stays as it is. What stands in
both is not looked for. Runs read what they read before until an edit of their order says otherwise.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_pipeline import input_table, survey
from fmscale import durable
from fmscale.corpus import verify
from fmscale.corpus.index import read_index
from fmscale.corpus.manifest import MARKER, TOKENIZER_FILE, Manifest, generation_directory
from fmscale.corpus.shards import manifests
from fmscale.errors import ConfigError, DataError, MachineError

BESIDE = (survey.FILE, survey.TIMES_FILE, input_table.FILE)
"""What says of a corpus what became of its input; there or not."""


def grow(corpus: Path, other: Path, advance: Callable[[int], None] = lambda done: None) -> Path:
    """Publish `other` as the next generation of `corpus`; its directory.

    advance: is told bytes as they are verified. Killed at any point, it is called again.
    Raises DataError: a corpus that does not hold, or does not fit. ConfigError: the same one twice, or one that has
    grown itself. MachineError: no room.
    """
    newest = [manifest for _, manifest in manifests(corpus)][-1]
    added = [manifest for _, manifest in manifests(other)]
    if corpus.resolve() == other.resolve() or len(added) > 1:
        raise ConfigError(
            "a corpus grows by another one that has not grown itself",
            expected="two corpora, the second of one generation",
            found=f"{other}, of {len(added)} generations" if len(added) > 1 else f"{other} twice",
            do="prepare the new text as a corpus of its own, with the same tokenizer and chunk sizes",
        )
    directory = generation_directory(corpus, newest.generation + 1)
    manifest = replace(added[0], generation=newest.generation + 1, parent=newest.manifest_hash)
    manifest.check_follows(newest, other)
    verify.survey(other, advance).check()
    try:
        _bring(other, added[0], directory)
        durable.publish_new(directory / MARKER, manifest.render())
    except FileExistsError:
        raise DataError(
            "the corpus grew meanwhile",
            expected=f"no {MARKER} in {directory}",
            found="one of another command",
            do="run the command again: what it adds then comes after that",
        ) from None
    except OSError as error:
        raise MachineError(
            "the new generation could not be written; the corpus is as it was",
            expected=f"room for {sum(split.bytes for split in manifest.splits.values()):,} bytes at {directory}",
            found=error.strerror or str(error),
            do="make room there or mend its permissions, and run the command again",
        ) from error
    return directory


def _bring(source: Path, manifest: Manifest, directory: Path) -> None:
    """All of its files but the manifest, in an empty directory."""
    if not (directory / MARKER).exists():
        shutil.rmtree(directory, ignore_errors=True)  # of a command that was killed
    directory.mkdir()
    index = read_index(source, manifest)
    shards = [shard.file for split in manifest.splits for shard in index.split(split).shards]
    beside = [name for name in BESIDE if (source / name).is_file()]
    for name in (*shards, TOKENIZER_FILE, manifest.index.file, manifest.inputs.file, *beside):
        try:
            os.link(source / name, directory / name)
        except OSError:  # another file system, or one without links
            with (source / name).open("rb") as file, durable.writing(directory / name) as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
    durable.fsync_directory(directory)
