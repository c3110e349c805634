"""A corpus grows by another one, whose shards become its next generation: what was there keeps its numbers.

    grow(Path("data/web"), Path("data/web-october"))      # data/web/gen-0001, the same bytes, linked where they can be

The other corpus is prepared with the tokenizer and the chunk sizes of the first, and stays as it is. What stands in
both is not looked for. Runs read what they read before until an edit of their order says otherwise.
"""

from __future__ import annotations

import errno
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
    """Publish `other` as the next generation of `corpus`; its directory. One that is a generation already stays that.

    advance: is told bytes as they are verified. Killed at any point, it is called again: a generation is there whole or
    not at all, whoever else adds one meanwhile.
    Raises DataError: a corpus that does not hold, or does not fit. ConfigError: the same one twice, or one that has
    grown itself. MachineError: no room.
    """
    known = list(manifests(corpus))
    added = [manifest for _, manifest in manifests(other)]
    if corpus.resolve() == other.resolve() or len(added) > 1:
        raise ConfigError(
            "a corpus grows by another one that has not grown itself",
            expected="two corpora, the second of one generation",
            found=f"{other}, of {len(added)} generations" if len(added) > 1 else f"{other} twice",
            do="prepare the new text as a corpus of its own, with the same tokenizer and chunk sizes",
        )
    for directory, manifest in known:
        if manifest.content_hash == added[0].content_hash:
            return directory
    newest = known[-1][1]
    directory = generation_directory(corpus, newest.generation + 1)
    manifest = replace(added[0], generation=newest.generation + 1, parent=newest.manifest_hash)
    manifest.check_follows(newest, other)
    verify.survey(other, advance).check()
    temporary = durable.temporary_name(directory)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _bring(other, added[0], temporary)
        durable.replace(temporary / MARKER, manifest.render())
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
        temporary.rename(directory)  # fails over a directory that holds anything
        durable.fsync_directory(corpus)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise DataError(
                "the corpus grew meanwhile, or something else has the name of its next generation",
                expected=f"nothing at {directory}",
                found=f"a directory with{'' if (directory / MARKER).exists() else 'out'} {MARKER}",
                do="run the command again; what has no manifest and no command writes to is to be removed first",
            ) from None
        raise MachineError(
            "the new generation could not be written; the corpus is as it was",
            expected=f"room for {sum(split.bytes for split in manifest.splits.values()):,} bytes at {directory}",
            found=error.strerror or str(error),
            do="make room there or mend its permissions, and run the command again",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _bring(source: Path, manifest: Manifest, directory: Path) -> None:
    """All of its files but the manifest, in a new directory."""
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
