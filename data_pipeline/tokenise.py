"""One task's kept documents to tokens: full training chunks as parts, the rest (tail, held-out documents) beside."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipeline.clock import Clock
from data_pipeline.document import Document, drop
from data_pipeline.holdout import DUPLICATE, HELDOUT, TRAIN
from data_pipeline.ngrams import ngrams
from data_pipeline.overlap import NgramSet
from data_pipeline.phases import phases, source
from data_pipeline.plan import Work, as_array, save, tokenizer_of
from data_pipeline.progress import Done
from data_pipeline.rule import batches
from data_pipeline.survey import Survey
from data_pipeline.text_store import lines_writer
from fmscale.corpus.chunks import Cutter, Stream, document_id, make_docs
from fmscale.corpus.chunks import join as join_streams
from fmscale.corpus.manifest import token_dtype
from fmscale.corpus.writer import write_parts
from fmscale.tokenizer import Tokenizer


def tokenise(work: Work, task: int) -> Done:
    """Save the task's tokens, and which n-grams of held-out documents its training text has."""
    plan = work.plan()
    kinds = work.of_task("kinds", task)
    grams = NgramSet(work.map_array("grams"))
    tokenizer = tokenizer_of(plan.recipe.tokenizer, plan.fingerprint)
    dtype = token_dtype(tokenizer.vocab_size)
    cutter = Cutter(plan.chunk_tokens, dtype)
    heldout: list[Stream] = []
    clock, survey = Clock(), Survey()
    count = 0

    phase = len(phases(plan.recipe))
    with lines_writer(work.dropped_file(phase, task)) as write_dropped:

        def kept() -> Iterator[Document]:
            for document in clock.measure("read texts", source(work, phase, task)):
                if kinds[document.row] in (TRAIN, HELDOUT):
                    yield document
                elif kinds[document.row] == DUPLICATE:
                    survey.add(rejected := drop(document, "duplicate"))
                    write_dropped(rejected)

        def encode(documents: list[Document]) -> Stream:
            with clock.part("tokenise"):
                stream = _encode(tokenizer, documents)
            for document, length in zip(documents, stream.docs["length"].tolist(), strict=True):
                survey.add(document, length)
            return stream

        def chunks() -> Iterator[Stream]:
            nonlocal count
            for batch in batches(kept()):
                count += len(batch)
                training = [document for document in batch if kinds[document.row] == TRAIN]
                if len(grams.met):
                    with clock.part("look up held-out n-grams"):
                        for some in ngrams([d.text for d in training], plan.recipe.decontaminate_ngram):
                            grams.meet(some.hashes)
                heldout.append(encode([d for d in batch if kinds[d.row] == HELDOUT]))
                yield from cutter.add(encode(training))

        with clock.part("write shards"):
            parts = write_parts(work.parts, "train", f"{task:05d}", chunks())
    expected = int(np.isin(kinds, (TRAIN, HELDOUT)).sum())
    assert count == expected, f"task {task} has {count} documents to tokenise, {expected} when scanned"
    held = join_streams(heldout, dtype)
    survey.add_seconds(clock.seconds)
    save(
        work.write_file(task),
        survey=as_array(survey.to_json()),
        parts=as_array([part.to_json() for part in parts]),
        tail_tokens=cutter.tail.tokens,
        tail_docs=cutter.tail.docs,
        held_tokens=held.tokens,
        held_docs=held.docs,
        met=np.flatnonzero(grams.met),
    )
    return Done(plan.task_input_bytes(task), count)


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
