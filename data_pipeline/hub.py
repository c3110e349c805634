"""Data sets as Hugging Face's `datasets` names them, streamed: hf:NAME?split=train&config=en&revision=main

NAME is a repository on the hub or a directory here. Each of its shards (files, in practice) is an input file. It is
pinned by what `datasets` says its files come from: commits on the hub, times in a directory. Retries are the
library's own. A single file on the hub is also a URL (hf://datasets/USER/NAME/FILE), which needs no `datasets`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from data_pipeline.damage import DamagedInput, changed, no_text_column
from data_pipeline.limits import PIECE_BYTES
from data_pipeline.optional import require
from data_pipeline.records import Fields, from_values, plain
from data_pipeline.store import said
from fmscale.errors import ConfigError, DataError, FmscaleError

if TYPE_CHECKING:
    from data_pipeline.document import Document
    from data_pipeline.inputs import InputFile, Piece

SCHEME = "hf:"
_KEYS = ("split", "config", "revision")
_MEDIA = ("Image", "Audio", "Video", "Pdf")
"""Features that are no text and would be decoded."""


@dataclass(frozen=True)
class Shard:
    spec: str
    """The set's, and behind a # the shard's number and how many there are."""
    name: str
    bytes: int
    """Its share of those of all files, or a guess where they are not known."""
    stamp: str


def shards(spec: str) -> list[Shard]:
    """Raises ConfigError: no `datasets`, a key that is not known; DataError: no such set, config or split."""
    name, options = _parse(spec)
    try:
        builder, stream = _open(name, options)
        size, stamp, count = _bytes(builder, options["split"]), _stamp(builder), stream.num_shards
    except FmscaleError:
        raise
    except Exception as error:  # the library's own and those of all that it uses
        raise DataError(
            "a data set cannot be opened",
            expected="hf:NAME?split=train, with &config=... where it has several",
            found=f"{spec}: {said(error)}",
            do="check its name on the hub, its splits and configs, and whether you are logged in",
        ) from error
    shown = f"{SCHEME}{name.rstrip('/').rpartition('/')[2]}/{options.get('config', 'default')}/{options['split']}"
    return [
        Shard(f"{spec}#{number}/{count}", f"{shown}/{number:05d}", size // count or PIECE_BYTES, stamp)
        for number in range(count)
    ]


def documents(file: InputFile, piece: Piece, fields: Fields) -> Iterator[Document]:
    """Every row's. Raises DamagedInput: another set than the pinned one, no such column, a hub that does not answer."""
    spec, _, place = file.path.rpartition("#")
    number, count = (int(part) for part in place.split("/"))
    name, options = _parse(spec)
    try:
        builder, stream = _open(name, options)
        if (_stamp(builder), stream.num_shards) != (file.stamp, count):
            raise changed(file.name, f"{count} shards, {file.stamp}", f"{stream.num_shards} shards, {_stamp(builder)}")
        if stream.features is not None:
            columns = {column: type(feature).__name__ for column, feature in stream.features.items()}
            if fields.text not in columns:
                raise no_text_column(file.name, "data set", fields.text, f"columns {', '.join(columns)}")
            stream = stream.select_columns([column for column, kind in columns.items() if kind not in _MEDIA])
        for record, row in enumerate(stream.shard(count, number)):
            values = {column: plain(value) for column, value in row.items() if value is not None}
            yield from_values(values, file.name, piece.file, record, fields)
    except FmscaleError:
        raise
    except Exception as error:
        raise DamagedInput(
            "a data set cannot be read",
            name=file.name,
            expected=file.name,
            found=said(error),
            do="check the connection and the set; run the command again",
            passing=True,
        ) from error


def _parse(spec: str) -> tuple[str, dict[str, str]]:
    name, _, query = spec.removeprefix(SCHEME).partition("?")
    options = dict(parse_qsl(query))
    if not name or options.keys() - set(_KEYS):
        raise ConfigError(
            "an input is no data set's name",
            expected="hf:NAME?split=train, with &config=... and &revision=... if needed",
            found=f"{SCHEME}{name} with {', '.join(options) or 'no keys'}",
            do="correct it; a column is chosen by text_field",
        )
    return name, {"split": "train", **options}


def _open(name: str, options: dict[str, str]) -> tuple[Any, Any]:
    """(its builder, its rows as a stream)"""
    datasets = require("datasets", "an hf: input", install="datasets")
    builder = datasets.load_dataset_builder(name, options.get("config"), revision=options.get("revision"))
    return builder, builder.as_streaming_dataset(split=options["split"])


def _stamp(builder: Any) -> str:
    files = builder.config.data_files or {}
    return str([(str(split), files[split].origin_metadata) for split in sorted(files)]) if files else str(builder.hash)


def _bytes(builder: Any, split: str) -> int:
    known = (builder.info.splits or {}).get(split)
    if known is not None and known.num_bytes:
        return int(known.num_bytes)
    core = require("fsspec.core", "an hf: input")
    size = 0
    for url in (builder.config.data_files or {}).get(split, []):
        fs, path = core.url_to_fs(url)
        size += int(fs.info(path).get("size") or 0)
    return size
