"""The stages of preparing a corpus, each a pure function of files: any process may do any task, any number of times.

    scan(work, t)    read task t: what each record is (text hash, held-out or not), n-grams of held-out documents
    join(work)       over all tasks: duplicates out, bad records judged, the set of held-out n-grams
    write(work, t)   read task t again: training documents to chunks, their n-grams looked up, held-out ones to tokens
    finish(work)     held-out documents that were given away out, tails packed, corpus published

So kill -9 at any time costs the tasks that were running, and the same command again ends in the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.dedup import (
    TEXT_HASH_DTYPE,
    U64,
    NgramSet,
    first_of_each,
    ngram_hashes,
    shared_with,
    unique_in_place,
    which_in,
)
from data_pipeline.document import Document, through
from data_pipeline.pipeline import auto_heldout_chunk_tokens, fields, is_heldout, load_steps, recipe_record
from data_pipeline.plan import Plan, Work, as_array, from_array, load, save, tokenizer_of
from data_pipeline.read import check_bad_share, read_piece
from fmscale import durable
from fmscale.corpus.chunks import Cutter, Stream, document_id, make_docs
from fmscale.corpus.chunks import join as join_streams
from fmscale.corpus.manifest import Manifest, token_dtype
from fmscale.corpus.writer import Part, publish, write_parts
from fmscale.errors import DataError
from fmscale.tokenizer import Tokenizer

DROPPED, TRAIN, HELDOUT, DUPLICATE = range(4)
"""What becomes of a record."""
SCAN_DTYPE = np.dtype([("text", TEXT_HASH_DTYPE), ("kind", "u1")])
_BATCH_CHARACTERS = 1 << 20


def scan(work: Work, task: int) -> int:
    """Save what each record of the task is; returns the task's input bytes."""
    plan = work.plan()
    dropped: Counter[str] = Counter()
    digests, kinds = bytearray(), bytearray()
    grams, gram_rows = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]

    def heldout() -> Iterator[tuple[Document, int]]:
        for row, document in enumerate(_documents(plan, task, dropped)):
            kind = DROPPED if document.dropped else HELDOUT if is_heldout(plan.recipe, document) else TRAIN
            digests.extend(bytes(16) if kind == DROPPED else xxhash.xxh3_128_digest(document.text.encode()))
            kinds.append(kind)
            if kind == HELDOUT:
                yield document, row

    for batch in _batches(heldout()):
        if plan.recipe.decontaminate_ngram:
            hashes, owners = ngram_hashes([document.text for document, _ in batch], plan.recipe.decontaminate_ngram)
            grams.append(hashes)
            gram_rows.append(np.array([row for _, row in batch], np.int64)[owners])
    rows = np.empty(len(kinds), SCAN_DTYPE)
    rows["text"]["high"], rows["text"]["low"] = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    rows["kind"] = np.frombuffer(kinds, np.uint8)
    save(
        work.scan_file(task),
        summary=as_array({"rows": len(rows), "dropped": dropped}),
        rows=rows,
        grams=np.concatenate(grams),
        gram_rows=np.concatenate(gram_rows),
    )
    return plan.task_input_bytes(task)


def join(work: Work) -> None:
    """Decide what becomes of each record, over all tasks. Raises DataError if too many are bad."""
    recipe = work.plan().recipe
    summaries = [from_array(load(work.scan_file(task), "summary")[0]) for task in _tasks(work)]
    dropped = sum((Counter[str](summary["dropped"]) for summary in summaries), Counter[str]())
    offsets = np.cumsum([0, *(summary["rows"] for summary in summaries)], dtype=np.int64)
    check_bad_share(dropped, int(offsets[-1]), recipe.max_bad_share, recipe.max_bad_run)
    kinds, given_away = _judge(work, offsets)
    if recipe.dedup == "exact":
        dropped["duplicate"] = int((kinds == DUPLICATE).sum())
    work.save_array("offsets", offsets)
    work.save_array("kinds", kinds)
    work.save_array("given_away", given_away)
    work.save_array("grams", _heldout_grams(work, offsets, kinds))
    durable.replace(work.join_file, json.dumps({"dropped": dropped}).encode())


def _judge(work: Work, offsets: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """(kind of each record, whether it is held out but its text is in training too)."""
    rows = np.empty(int(offsets[-1]), SCAN_DTYPE)
    for task in _tasks(work):
        rows[offsets[task] : offsets[task + 1]] = load(work.scan_file(task), "rows")[0]
    kinds = rows["kind"].copy()
    if work.plan().recipe.dedup == "exact":
        kinds[(kinds != DROPPED) & ~first_of_each(rows["text"], kinds != DROPPED)] = DUPLICATE
    # Without exact de-duplication a text may stand on both sides: then it counts as training text.
    return kinds, shared_with(rows["text"], kinds == HELDOUT, kinds == TRAIN)


def _heldout_grams(work: Work, offsets: npt.NDArray[np.int64], kinds: npt.NDArray[np.uint8]) -> U64:
    """Sorted and unique n-grams of the held-out documents. One task at a time, so that their owners never add up."""
    kept = [np.empty(0, np.uint64)]
    for task in _tasks(work):
        grams, owners = load(work.scan_file(task), "grams", "gram_rows")
        kept.append(grams[kinds[offsets[task] + owners] == HELDOUT])
    joined = np.concatenate(kept)
    kept.clear()
    return unique_in_place(joined)


def write(work: Work, task: int) -> int:
    """Tokenise the task: its full training chunks as parts, the rest (tail, held-out documents) beside."""
    plan = work.plan()
    kinds = _of_task(work, "kinds", task)
    grams = NgramSet(work.map_array("grams"))
    tokenizer = tokenizer_of(plan.recipe.tokenizer, plan.fingerprint)
    dtype = token_dtype(tokenizer.vocab_size)
    cutter = Cutter(plan.chunk_tokens, dtype)
    heldout: list[Stream] = []

    def chunks() -> Iterator[Stream]:
        for batch in _batches(_kept(plan, task, kinds)):
            training = [document for document, kind in batch if kind == TRAIN]
            if len(grams.met):
                grams.meet(ngram_hashes([d.text for d in training], plan.recipe.decontaminate_ngram)[0])
            heldout.append(_encode(tokenizer, [document for document, kind in batch if kind == HELDOUT]))
            yield from cutter.add(_encode(tokenizer, training))

    parts = write_parts(work.parts, "train", f"{task:05d}", chunks())
    held = join_streams(heldout, dtype)
    save(
        work.write_file(task),
        parts=as_array([part.to_json() for part in parts]),
        tail_tokens=cutter.tail.tokens,
        tail_docs=cutter.tail.docs,
        held_tokens=held.tokens,
        held_docs=held.docs,
        met=np.flatnonzero(grams.met),
    )
    return plan.task_input_bytes(task)


def finish(work: Work, output: Path) -> Manifest:
    """Pack the tails and the held-out documents, and publish everything at `output`."""
    plan = work.plan()
    tokenizer = tokenizer_of(plan.recipe.tokenizer, plan.fingerprint)
    dtype = token_dtype(tokenizer.vocab_size)
    kinds = work.map_array("kinds")
    dropped = Counter[str](json.loads(work.join_file.read_bytes())["dropped"])
    met = np.zeros(len(work.map_array("grams")), bool)
    parts: list[Part] = []
    for task in _tasks(work):
        members, lines = load(work.write_file(task), "met", "parts")
        met[members] = True
        parts += [Part.from_json(line, work.parts) for line in from_array(lines)]

    train = Cutter(plan.chunk_tokens, dtype)
    parts += write_parts(work.parts, "train", "tails", _tail_chunks(work, train))

    if not any(part.split == "train" for part in parts):
        raise DataError(
            "the training text fills not a single chunk",
            expected=f"more than {plan.chunk_tokens} tokens (chunk_tokens)",
            found=f"{len(train.tail.tokens)} tokens in {int((kinds == TRAIN).sum())} documents",
            do="give more text, or set a smaller chunk_tokens (at least data.seq_len)",
        )
    met_grams = work.map_array("grams")[met]  # sorted, as all of them are
    survivors = [_survivors(work, task, met_grams, dropped) for task in _tasks(work)]
    lengths = [load(work.write_file(task), "held_docs")[0]["length"] for task in _tasks(work)]
    held_tokens = sum(int(length[kept].sum()) for length, kept in zip(lengths, survivors, strict=True))
    held_chunk = plan.recipe.heldout_chunk_tokens or auto_heldout_chunk_tokens(held_tokens, plan.chunk_tokens)
    heldout = Cutter(held_chunk, dtype)
    parts += write_parts(work.parts, "heldout", "00000", _heldout_chunks(work, survivors, heldout))

    trained, held = int((kinds == TRAIN).sum()), sum(int(kept.sum()) for kept in survivors)
    counts = {"in": len(kinds), "out": trained + held, "train": trained, "heldout": held}
    assert counts["in"] == counts["out"] + dropped.total(), f"documents got lost: {counts}, dropped {dict(dropped)}"
    return publish(
        output,
        parts,
        tokenizer=tokenizer,
        chunk_tokens={"train": plan.chunk_tokens, "heldout": held_chunk},
        left_over={"train": len(train.tail.tokens), "heldout": len(heldout.tail.tokens)},
        recipe={**recipe_record(plan.recipe), "plan": plan.id, "left_out_files": plan.inputs.left_out},
        counts={**counts, "dropped": {reason: count for reason, count in sorted(dropped.items()) if count}},
        inputs=[{"path": file.name, "bytes": file.bytes, "hash": file.hash} for file in plan.inputs.files],
    )


def _tasks(work: Work) -> range:
    return range(len(work.plan().inputs.tasks))


def _of_task(work: Work, name: str, task: int) -> npt.NDArray[np.uint8]:
    """The task's rows of an array over all records."""
    begin, end = work.map_array("offsets")[task : task + 2]
    return np.asarray(work.map_array(name)[begin:end])


def _tail_chunks(work: Work, cutter: Cutter) -> Iterator[Stream]:
    for task in _tasks(work):
        yield from cutter.add(Stream(*load(work.write_file(task), "tail_tokens", "tail_docs")))


def _survivors(work: Work, task: int, met: U64, dropped: Counter[str]) -> npt.NDArray[np.bool_]:
    """bool[held-out documents of the task]: those that training text does not give away; the others are counted.

    met: the n-grams that training text has, sorted.
    """
    rows = np.flatnonzero(_of_task(work, "kinds", task) == HELDOUT)
    grams, gram_rows = load(work.scan_file(task), "grams", "gram_rows")
    same = _of_task(work, "given_away", task)[rows].astype(bool)
    overlap, short = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    if work.plan().recipe.decontaminate_ngram:
        overlap = np.isin(rows, gram_rows[which_in(grams, met)]) & ~same
        short = ~np.isin(rows, gram_rows) & ~same
    for reason, gone in (("heldout_duplicate", same), ("heldout_overlap", overlap), ("heldout_too_short", short)):
        dropped[reason] += int(gone.sum())
    return ~(same | overlap | short)


def _heldout_chunks(work: Work, survivors: list[npt.NDArray[np.bool_]], cutter: Cutter) -> Iterator[Stream]:
    for task, kept in enumerate(survivors):
        tokens, docs = load(work.write_file(task), "held_tokens", "held_docs")
        yield from cutter.add(Stream(tokens[np.repeat(kept, docs["length"])], docs[kept]))


def _documents(plan: Plan, task: int, dropped: Counter[str]) -> Iterator[Document]:
    """Every record of the task after the recipe's steps."""
    read = (
        document
        for piece in plan.inputs.tasks[task]
        for document in read_piece(plan.inputs.files[piece.file], piece, fields(plan.recipe), plan.recipe.max_bad_run)
    )
    return through(read, load_steps(plan.recipe), dropped)


def _kept(plan: Plan, task: int, kinds: npt.NDArray[np.uint8]) -> Iterator[tuple[Document, int]]:
    """The documents that go into the corpus. Raises DataError if a step does not do what it did in the scan."""
    row = -1
    for row, document in enumerate(_documents(plan, task, Counter())):
        if bool(document.dropped) != (kinds[row] == DROPPED):
            raise DataError(
                "a step gave another result when it ran again",
                expected="steps that depend on nothing but the document",
                found=f"{document.source}, record {document.record}, after {', '.join(map(str, plan.recipe.steps))}",
                do="take clocks, random numbers and state out of the step",
            )
        if kinds[row] in (TRAIN, HELDOUT):
            yield document, int(kinds[row])
    assert row + 1 == len(kinds), f"task {task} has {row + 1} records, {len(kinds)} when scanned"


def _batches(documents: Iterator[tuple[Document, int]]) -> Iterator[list[tuple[Document, int]]]:
    """Documents, each with a number of its own, by about a million characters."""
    batch: list[tuple[Document, int]] = []
    held = 0
    for item in documents:
        batch.append(item)
        held += len(item[0].text)
        if held >= _BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, documents: list[Document]) -> Stream:
    """The documents' tokens, each document closed by EOS."""
    dtype = token_dtype(tokenizer.vocab_size)
    end = np.array([tokenizer.eos_id], dtype)
    encoded = tokenizer.encode_batch([document.text for document in documents])
    pieces = [piece for tokens in encoded for piece in (tokens, end)]
    docs = make_docs(
        [len(tokens) + 1 for tokens in encoded],
        [document_id(document.id) for document in documents],
        [document.file for document in documents],
        [document.record for document in documents],
    )
    return Stream(np.concatenate([np.empty(0, dtype), *pieces]), docs)
