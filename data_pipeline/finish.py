"""The end of a preparation: held-out documents that were given away go, tails are packed, all is published."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

from data_pipeline import holdout
from data_pipeline.document import drop
from data_pipeline.holdout import TRAIN
from data_pipeline.input_table import FILE, HEAD, SAME_ID
from data_pipeline.join import clusters_of, counts_of, dropped_by, pass_at_end_of, same_ids_of
from data_pipeline.phases import phases, source
from data_pipeline.pipeline import auto_heldout_chunk_tokens
from data_pipeline.plan import Work, from_array, load, tokenizer_of
from data_pipeline.quarantine import quarantined
from data_pipeline.survey import Survey, write_survey
from data_pipeline.text_store import lines_writer
from fmscale import durable
from fmscale.corpus.chunks import Cutter, Stream
from fmscale.corpus.manifest import Manifest, token_dtype
from fmscale.corpus.writer import Part, publish, write_parts
from fmscale.errors import DataError

DROPPED = "dropped"
"""Directory beside the manifest: dropped documents as JSON lines, if the recipe keeps them."""

FileCounts = Counter[tuple[int, str]]
"""By input file and reason."""


def finish(work: Work, output: Path) -> Manifest:
    """Publish at `output` what the tasks have made. Raises DataError if the text fills not a single chunk."""
    plan = work.plan()
    tokenizer = tokenizer_of(plan.recipe.tokenizer, plan.fingerprint)
    dtype = token_dtype(tokenizer.vocab_size)
    kinds = work.map_array("kinds")
    met = np.zeros(len(work.map_array("grams")), bool)
    parts: list[Part] = []
    for task in work.tasks:
        members, lines = load(work.write_file(task), "met", "parts")
        met[members] = True
        parts += [Part.from_json(line, work.parts) for line in from_array(lines)]

    train = Cutter(plan.chunk_tokens, dtype)
    parts += write_parts(work.parts, "train", "tails", _tail_chunks(work, train))
    if not any(part.split == "train" for part in parts):
        raise _too_little(work, len(train.tail.tokens), int((kinds == TRAIN).sum()))
    records, dropped, tally = _counts(work)
    survey = _survey(work)
    survivors = _survivors(work, work.map_array("grams")[met], dropped, survey)  # sorted, as all n-grams are
    lengths = [load(work.write_file(task), "held_docs")[0]["length"] for task in work.tasks]
    held_tokens = sum(int(length[kept].sum()) for length, kept in zip(lengths, survivors, strict=True))
    held_chunk = plan.recipe.heldout_chunk_tokens or auto_heldout_chunk_tokens(held_tokens, plan.chunk_tokens)
    heldout = Cutter(held_chunk, dtype)
    parts += write_parts(work.parts, "heldout", "00000", _heldout_chunks(work, survivors, heldout))

    trained, held = int((kinds == TRAIN).sum()), sum(int(kept.sum()) for kept in survivors)
    counts = {"in": records.total(), "out": trained + held, "train": trained, "heldout": held}
    assert counts["in"] == counts["out"] + dropped.total(), f"documents got lost: {counts}, dropped {dict(dropped)}"
    told = {"out": survey.kept.documents, "dropped": survey.dropped.documents}
    assert told == {"out": counts["out"], "dropped": dropped.total()}, f"surveyed {told}, counted {counts}"
    by_reason = Counter[str]()
    for (_, reason), count in dropped.items():
        by_reason[reason] += count
    same_ids = same_ids_of(work)
    _publish_beside(work, output, records, dropped, same_ids)
    if plan.recipe.keep_dropped:
        _publish_dropped(work, output, dropped.total())
    write_survey(output, survey, plan.id)
    recipe = {**plan.record, "plan": plan.id, "left_out_files": plan.inputs.left_out}
    return publish(
        output,
        parts,
        tokenizer=tokenizer,
        chunk_tokens={"train": plan.chunk_tokens, "heldout": held_chunk},
        left_over={"train": len(train.tail.tokens), "heldout": len(heldout.tail.tokens)},
        recipe=recipe,
        counts={
            **counts,
            "dropped": {reason: count for reason, count in sorted(by_reason.items()) if count},
            **({"changed": dict(sorted(tally.items()))} if tally else {}),
            **({"duplicate_ids": same_ids.total()} if same_ids else {}),
            **({"quarantined": lost} if (lost := quarantined(work)) else {}),
        },
        inputs=_inputs(work),
    )


def _too_little(work: Work, tokens: int, documents: int) -> DataError:
    """The error, with what became of the rest: as a rule that is the reason."""
    records, dropped, _ = _counts(work)
    by_reason = Counter[str]()
    for (_, reason), count in dropped.items():
        by_reason[reason] += count
    found = f"{tokens} tokens in {documents} of {records.total()} documents"
    if most := by_reason.most_common(3):
        found += f"; dropped: {', '.join(f'{reason} {count}' for reason, count in most)}"
    if lost := quarantined(work):
        found += f"; damaged and left out: {len({each['file'] for each in lost})} files"
    do = "give more text, or set a smaller chunk_tokens (at least data.seq_len)"
    if by_reason.total() > records.total() / 2:
        do = f"look at what goes by {most[0][0]}, with keep_dropped=true in another output; else {do}"
    return DataError(
        "the training text fills not a single chunk",
        expected=f"more than {work.plan().chunk_tokens} tokens (chunk_tokens)",
        found=found,
        do=do,
    )


def _inputs(work: Work) -> list[dict[str, str | int]]:
    """For inputs.jsonl. A file in a store has the hash that reading it gave, and the stamp that it was pinned by."""
    read: dict[int, str] = {}
    for task in work.tasks:
        read |= counts_of(work, 0, task).hashes
    found: list[dict[str, str | int]] = []
    for number, file in enumerate(work.plan().inputs.files):
        found.append({"path": file.name, "bytes": file.bytes, "hash": read.get(number, file.hash)})
        if not file.is_local:
            found[-1]["pinned"] = file.hash
    return found


def _counts(work: Work) -> tuple[Counter[int], FileCounts, Counter[str]]:
    """(records by file, dropped before the end, changes) over all phases and tasks."""
    records, dropped, tally = Counter[int](), FileCounts(), Counter[str]()
    for phase in range(len(phases(work.plan().recipe))):
        for task in work.tasks:
            counts = counts_of(work, phase, task)
            records.update(counts.records if not phase else ())  # `+=` would look through all of them each time
            dropped.update(counts.dropped)
            tally.update(counts.tally)
        dropped.update(dropped_by(work, phase))
    return records, dropped, tally


def _survey(work: Work) -> Survey:
    """What the tasks saw of the documents' fates, and the passes of their clusters."""
    total = Survey()
    for phase in range(len(phases(work.plan().recipe))):
        for task in work.tasks:
            total.merge(Survey.from_json(from_array(load(work.scan_file(phase, task), "survey")[0])))
        if clusters := clusters_of(work, phase):
            total.add_clusters(pass_at_end_of(work, phase).reason, clusters)
    for task in work.tasks:
        total.merge(Survey.from_json(from_array(load(work.write_file(task), "survey")[0])))
    return total


def _survivors(
    work: Work, met: npt.NDArray[np.uint64], dropped: FileCounts, survey: Survey
) -> list[npt.NDArray[np.bool_]]:
    """Of each task, bool [held-out documents]: what stays. The others are counted, and kept if the recipe asks."""
    recipe = work.plan().recipe
    count = len(phases(recipe))
    survivors = []
    for task in work.tasks:
        kept, gone = holdout.survivors(work, count - 1, task, met, dropped)
        survivors.append(kept)
        for reason, number in Counter(gone.values()).items():
            survey.drop_later(reason, number)
        if recipe.keep_dropped and gone:
            with lines_writer(work.dropped_file(count + 1, task)) as show:
                for document in source(work, count, task):
                    if document.row in gone:
                        show(drop(document, gone[document.row]))
    return survivors


def _publish_beside(
    work: Work, output: Path, records: Counter[int], dropped: FileCounts, same_ids: Counter[int]
) -> None:
    """What stands beside the manifest, before it."""
    plan = work.plan()
    for left in output.glob(".*.tmp"):  # by a run that was killed here
        left.unlink(missing_ok=True)
    reasons = sorted({reason for _, reason in dropped})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*HEAD, *reasons, SAME_ID])
    for number, file in enumerate(plan.inputs.files):
        gone = [dropped[number, reason] for reason in reasons]
        table.writerow([file.name, file.bytes, records[number], records[number] - sum(gone), *gone, same_ids[number]])
    durable.replace(output / FILE, text.getvalue().encode("utf-8", "surrogateescape"))


def _publish_dropped(work: Work, output: Path, expected: int) -> None:
    """What was dropped, for people. Raises DataError if it is not as many documents as were counted."""
    files = [path for path in work.dropped.iterdir() if not path.name.startswith(".")]
    with ThreadPoolExecutor(4) as pool:  # unpacking releases the interpreter lock
        found = sum(pool.map(_count_lines, files))
    if found != expected:
        raise DataError(
            "dropped documents are missing",
            expected=f"{expected} lines in {work.dropped}, one for each document that was dropped (keep_dropped)",
            found=f"{found} lines in {len(files)} files",
            do=f"remove {work.directory} and run the command again: it starts over",
        )
    shutil.rmtree(output / DROPPED, ignore_errors=True)  # of a run that was killed here
    shutil.copytree(work.dropped, output / DROPPED, ignore=shutil.ignore_patterns(".*"))


def _count_lines(path: Path) -> int:
    """Of a .zst file."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as lines:
        return sum(block.count(b"\n") for block in iter(lambda: lines.read(1 << 20), b""))


def _tail_chunks(work: Work, cutter: Cutter) -> Iterator[Stream]:
    for task in work.tasks:
        yield from cutter.add(Stream(*load(work.write_file(task), "tail_tokens", "tail_docs")))


def _heldout_chunks(work: Work, survivors: list[npt.NDArray[np.bool_]], cutter: Cutter) -> Iterator[Stream]:
    for task, kept in enumerate(survivors):
        tokens, docs = load(work.write_file(task), "held_tokens", "held_docs")
        yield from cutter.add(Stream(tokens[np.repeat(kept, docs["length"])], docs[kept]))
