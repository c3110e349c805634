"""Bytes of pinned input files -> documents. What cannot be read comes out too, with the reason in `dropped`.

Each kind of file has a reader (data_pipeline/readers/). The bytes of a piece pass once, in order, and are hashed as
they do: input that changed since it was pinned is found, before the last of its records at the latest. A run of bad
records, or too many of them, is an error: the file is probably not what the recipe takes it for.

Input is not trusted: what a record, a text or an archive may take of memory is limited (limits.py), however small the
file that asks for it. What is wrong with a whole file is a DamagedInput with its name, and nothing of it may be used.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator

import xxhash

from data_pipeline import hub, store
from data_pipeline.damage import DamagedInput, changed
from data_pipeline.document import Document
from data_pipeline.inputs import InputFile, Piece
from data_pipeline.limits import BLOCK_BYTES
from data_pipeline.readers import lines, parquet, tar, text, warc
from data_pipeline.records import BAD_REASONS, Fields
from fmscale.errors import DataError

__all__ = ["BAD_REASONS", "EXPECTED", "EXPLAIN", "Fields", "check_bad_share", "read_piece"]

READERS = {
    "jsonl": lines.documents,
    "text": text.documents,
    "warc": warc.documents,
    "parquet": parquet.documents,
    "tar": tar.documents,
}
"""By `InputFile.kind`: (file, piece, the piece's bytes, fields) -> documents."""


def read_piece(
    file: InputFile,
    piece: Piece,
    fields: Fields,
    max_bad_run: int,
    note: Callable[[str], None] = lambda digest: None,
) -> Iterator[Document]:
    """Every record of `piece`, bad ones with `dropped` set.

    note: is told the xxh3_128 of the piece's bytes at the end; of a file in a store, only then is it known.
    Raises DamagedInput: bytes that are not the pinned ones, a damaged archive or record, a file or store that cannot
    be read, more than `max_bad_run` bad records in one go; ConfigError: the package that reads this kind is missing.
    """
    if file.kind == "hub":
        yield from _unless_all_bad(hub.documents(file, piece, fields), file, fields, max_bad_run)
        return
    blocks = _checked(file, piece, note)
    try:
        yield from _unless_all_bad(READERS[file.kind](file, piece, blocks, fields), file, fields, max_bad_run)
        _pass(blocks)
    except DamagedInput:
        if file.is_local:
            _pass(blocks)  # if these are not the pinned bytes, then that is what is wrong
        elif inspect.getgeneratorstate(blocks) != inspect.GEN_CLOSED:  # it was the reader who complained, not the store
            store.check(file.path, file.name, file.bytes, file.stamp)
        raise


def _unless_all_bad(
    documents: Iterable[Document], file: InputFile, fields: Fields, max_bad_run: int
) -> Iterator[Document]:
    bad_run = 0
    for document in documents:
        bad_run = bad_run + 1 if document.dropped in BAD_REASONS else 0
        if bad_run > max_bad_run:
            raise DamagedInput(
                f"{bad_run} bad records in one go",
                name=file.name,
                expected=EXPECTED.get(file.kind, "records with a string in `{}`").format(fields.text),
                found=f"{file.name}, record {document.record}: {document.dropped} ({EXPLAIN[document.dropped]})",
                do="set text_field (and group_field) to the input's own names, or leave the file out of inputs",
            )
        yield document


EXPECTED = {
    "jsonl": "JSON objects, one a line, with a string in `{}`",
    "warc": "pages that can be decoded",
    "text": "plain text in UTF-8",
}
"""Of the records of a file, by its kind."""


def check_bad_share(dropped: Counter[str], records: int, max_share: float, max_run: int) -> None:
    """Raise DataError if bad records are more than `max_share` of all and more than `max_run`."""
    bad = {reason: dropped[reason] for reason in BAD_REASONS if dropped[reason]}
    if sum(bad.values()) > max(max_share * records, max_run):
        raise DataError(
            "too many bad records",
            expected=f"at most {max_share:.2%} of {records} records (max_bad_share) or {max_run} (max_bad_run)",
            found=", ".join(f"{reason} {count}" for reason, count in bad.items()),
            do="mend the input; or raise max_bad_share, if this loss is acceptable",
        )


EXPLAIN = {
    "bad_utf8": "the bytes are no UTF-8",
    "bad_json": "the line is no JSON",
    "too_many_values": "a record of more than two million values",
    "duplicate_key": "an object says the same key twice, so one of its values would be lost",
    "not_an_object": "the line is JSON, but no object",
    "no_text": "the text field is missing or no string",
    "too_long": "a record or text of more than 64 MiB",
    "lone_surrogate": "half of a surrogate pair, which no UTF-8 text can hold",
    "no_group": "the group field is missing",
    "bad_payload": "a crawled page's body is not coded as its header says",
    "skipped_record": "a record of a crawl file that holds no page: a request, metadata, a revisit, robots.txt",
    "http_status": "a crawled answer that is no page: its status is not 2xx",
    "not_text": "neither HTML nor text, by its type or name",
    "empty": "nothing but white space",
    "blank_line": "a line without a record",
    "duplicate": "the same text stood earlier in the input",
    "heldout_duplicate": "held out, but the same text is in training",
    "heldout_overlap": "held out, but shares an n-gram of words with training text",
    "heldout_too_short": "held out, but has fewer words than an n-gram, so overlap cannot be judged",
}
"""Every reason of ours, in words; a step of a user's own brings its own reasons."""


def _checked(file: InputFile, piece: Piece, note: Callable[[str], None]) -> Generator[bytes, None, None]:
    """The piece's bytes. Raises DamagedInput after the last one if they are not the pinned ones."""
    digest = xxhash.xxh3_128()
    for block in _local(file, piece) if file.is_local else _stored(file, piece):
        digest.update(block)
        yield block
    if piece.hash and digest.hexdigest() != piece.hash:
        raise changed(file.name, _pinned(file), f"other bytes at {piece.start} to {piece.stop}")
    note(digest.hexdigest())


def _stored(file: InputFile, piece: Piece) -> Iterator[bytes]:
    return store.blocks(file.path, file.name, file.bytes, file.stamp, piece.start, piece.stop)


def _local(file: InputFile, piece: Piece) -> Iterator[bytes]:
    left = piece.stop - piece.start
    try:
        with open(file.path, "rb") as raw:
            raw.seek(piece.start)
            while left and (block := raw.read(min(left, BLOCK_BYTES))):
                left -= len(block)
                yield block
    except FileNotFoundError as error:
        raise changed(file.name, _pinned(file), "no such file") from error
    except OSError as error:
        raise DamagedInput(
            "an input file cannot be read",
            name=file.name,
            expected=f"{file.name}, as when it was pinned",
            found=error.strerror or str(error),
            do="mend the disk or its permissions, or leave the file out of inputs",
            passing=True,
        ) from error
    if left:
        raise changed(file.name, _pinned(file), f"it ends {left} bytes before byte {piece.stop}")


def _pinned(file: InputFile) -> str:
    return f"{file.bytes} bytes and hash {file.hash}"


def _pass(blocks: Iterable[bytes]) -> None:
    for _ in blocks:
        pass
