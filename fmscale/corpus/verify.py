"""Every byte of a corpus, checked; and what is in it, told: behind `fmscale data verify` and `fmscale data inspect`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fmscale.corpus import packing_plan
from fmscale.corpus.generation import Generation
from fmscale.corpus.index import Shard, read_index
from fmscale.corpus.inputs import read_inputs
from fmscale.corpus.manifest import MARKER, SPLITS, TOKENIZER_FILE, check_tokenizer
from fmscale.corpus.packing import Packed
from fmscale.corpus.shards import Corpus, manifests
from fmscale.errors import DataError
from fmscale.tokenizer import Tokenizer

COMPANIONS = ("report.json", "times.json", "report.html", "inputs.csv", "dropped")
"""What may stand beside a manifest and is no part of the corpus: what became of the input (docs/data.md)."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file, or one chunk of it, that is not as it was written."""

    what: str
    """In one line, with the file's name in it."""
    file: Path
    split: str = ""
    """Of its chunks; empty for a file that holds none."""
    chunks: tuple[int, ...] = ()
    """Numbers in the Corpus of the split: those that cannot be used."""
    do: str = ""
    """The remedy, where it is not that of a corpus: a packing plan is made again."""

    def __str__(self) -> str:
        if len(self.chunks) < 2:
            return self.what
        return f"{self.what}; lost with it: {self.split} chunks {number_ranges(self.chunks)}"


@dataclass(frozen=True, kw_only=True)
class Report:
    generations: int
    shards: int
    """That are as written."""
    chunks: int
    """That are as written."""
    tokens: int
    """Input tokens of the chunks that hold."""
    bytes: int
    """Of the shards."""
    seconds: float
    damage: tuple[Damage, ...]
    """Every file and chunk that is not as written; empty if all is well."""
    foreign: tuple[str, ...]
    """Files in the directory that no manifest names, hidden ones aside: ignored when reading."""

    def check(self) -> None:
        """Raises DataError if there is damage. Packing plans are looked at where the corpus is whole: it is told whose
        damage it is."""
        if self.damage:
            of_plan = self.damage[0].do
            places = "1 place" if len(self.damage) == 1 else f"{len(self.damage)} places"
            raise DataError(
                f"{'a packing plan (the corpus is whole)' if of_plan else 'the corpus'} is damaged in {places}",
                expected="every byte as it was written",
                found=str(self.damage[0]),
                do=of_plan
                or "restore the named shards from a copy, or prepare the corpus again; "
                "`fmscale data verify --repair-report` tells what is lost",
            )

    def __str__(self) -> str:
        foreign = f"; {len(self.foreign)} foreign files" if self.foreign else ""
        return (
            f"{len(self.damage)} places damaged: {self.chunks:,} chunks in {self.shards:,} shards of "
            f"{self.generations} generations hold, {self.tokens:,} tokens{foreign} "
            f"({self.bytes / 1e6 / max(self.seconds, 1e-9):,.0f} MB/s)"
        )


def verify(path: str | Path) -> Report:
    """`survey`, and DataError if there is any damage."""
    report = survey(path)
    report.check()
    return report


def survey(path: str | Path, progress: Callable[[int], None] = lambda shard_bytes: None) -> Report:
    """Hash all of every generation; check document tables, token ranges, EOS and the tokens that neighbours share.

    progress: called with the size of each shard when it has been read.
    Raises DataError for what makes the rest unreadable (marker, manifest, index); collects the rest in `damage`.
    """
    begun = time.monotonic()
    base = Path(path)
    damage: list[Damage] = []
    known: set[Path] = set()
    generations = shards = chunks = tokens = size = 0
    for parts in open_parts(base):
        directory, manifest = parts[0].directory, parts[0].manifest
        generations += 1
        named = (MARKER, TOKENIZER_FILE, manifest.index.file, manifest.inputs.file)
        known |= {directory, *(directory / name for name in (*named, *COMPANIONS))}
        known |= {directory / shard.file for part in parts for shard in part.shards}
        for check, name in ((check_tokenizer, TOKENIZER_FILE), (read_inputs, manifest.inputs.file)):
            try:
                check(directory, manifest)
            except DataError as error:
                damage.append(Damage(what=_line(error), file=directory / name))
        for part in parts:
            chunk_tokens = manifest.split(part.split).chunk_tokens
            for shard, faults in _faults_by_shard(part, chunk_tokens):
                held = shard.chunks - sum(len(fault.chunks) for fault in faults)
                damage += faults
                shards += not faults
                chunks += held
                tokens += held * chunk_tokens
                size += shard.bytes
                progress(shard.bytes)
    plans = sorted(base.glob(f"packing-*/{packing_plan.MARKER}"))
    for plan in [] if damage else plans:
        fault = _fault_of_plan(base, plan)
        # A plan is read with those of the generations before it: their faults are its own, and told once.
        if fault and fault.what not in [told.what for told in damage]:
            damage.append(fault)
    directories = [path for path in known if path.is_dir() and path.name not in COMPANIONS]
    known |= {plan.parent for plan in plans}
    found = [p for d in directories for p in d.iterdir() if p not in known and not p.name.startswith(".")]
    foreign = sorted(str(p.relative_to(base)) for p in found)
    return Report(
        generations=generations,
        shards=shards,
        chunks=chunks,
        tokens=tokens,
        bytes=size,
        seconds=time.monotonic() - begun,
        damage=tuple(damage),
        foreign=tuple(foreign),
    )


def open_parts(base: Path) -> Iterator[list[Generation]]:
    """For each generation its splits, whatever state their shards are in. Raises DataError as `survey` does."""
    first = dict.fromkeys(SPLITS, 0)
    for directory, manifest in manifests(base):
        index = read_index(directory, manifest, whole=True)
        yield [Generation(base, directory, manifest, split, index, first[split]) for split in SPLITS]
        for split in SPLITS:
            first[split] += manifest.split(split).chunks


def number_ranges(numbers: Sequence[int]) -> str:
    """`3-5, 9` for 3, 4, 5, 9."""
    breaks = [0, *(i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1), len(numbers)]
    ends = [(numbers[a], numbers[b - 1]) for a, b in pairwise(breaks)]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)


def _faults_by_shard(part: Generation, chunk_tokens: int) -> Iterator[tuple[Shard, list[Damage]]]:
    """For each shard, what is wrong with the file, and with each chunk that is not simply lost with it."""
    before: _Link | None = None  # unknown for the first chunk and after a damaged one
    for number, shard in enumerate(part.shards):
        path, faults, lost, of_file = part.directory / shard.file, [], [], ""
        try:
            part.check_shard(number)
        except DataError as error:
            of_file = _line(error)
        for chunk in range(shard.first, shard.end):
            try:
                tokens, docs = part.tokens(chunk), part.docs(chunk)
            except DataError as error:
                before, fault = None, _line(error)
                if of_file:
                    lost.append(part.first + chunk)
                    continue
            else:
                link = _Link(*part.key(chunk), int(tokens[0]), int(tokens[-1]))
                fault = _written_wrong(part, tokens, docs, chunk_tokens) or link.fault(before)
                fault = fault and f"chunk {part.first + chunk} of {path}: {fault}"
                before = link
            if fault:
                faults.append(Damage(what=fault, file=path, split=part.split, chunks=(part.first + chunk,)))
        if of_file:
            faults.insert(0, Damage(what=of_file, file=path, split=part.split, chunks=tuple(lost)))
        yield shard, faults


def _fault_of_plan(base: Path, marker: Path) -> Damage | None:
    """What is wrong with a packing plan of a corpus that is otherwise whole."""
    try:
        plan = packing_plan.PackingPlan.load(marker)
        packed = Packed.open(Corpus.open(base, plan.split, generation=plan.generation), plan.row_tokens)
        packed.verify(plan.generation)
    except DataError as error:
        return Damage(what=_line(error), file=marker, do=error.do)
    return None


class _Link(NamedTuple):
    """What must fit between neighbours: the chunks of a task stand in order and share a token."""

    task: str
    ordinal: int
    first: int
    last: int

    def fault(self, before: _Link | None) -> str:
        if before is None:
            return ""
        if self.task != before.task:
            return "" if self.ordinal == 0 else f"its task {self.task} begins with chunk {self.ordinal}"
        if self.ordinal != before.ordinal + 1:
            return f"chunk {self.ordinal} of {self.task} stands after {before.ordinal}"
        return "" if self.first == before.last else f"begins with token {self.first}, not with {before.last}"


def _written_wrong(part: Generation, tokens: npt.NDArray[Any], docs: npt.NDArray[np.void], chunk_tokens: int) -> str:
    """What is wrong with a chunk whose bytes are as they were written; empty if nothing is."""
    ends = np.cumsum(docs["length"], dtype=np.int64)
    if not len(docs) or ends[-1] != chunk_tokens + 1 or (docs["start"] != ends - docs["length"]).any():
        return f"its documents do not tile its {chunk_tokens + 1} tokens"
    if tokens.max() >= part.manifest.vocab_size:
        return f"token {tokens.max()} is outside the vocabulary of {part.manifest.vocab_size}"
    if (tokens[ends[:-1] - 1] != part.manifest.tokenizer["eos_id"]).any():
        return "a document does not end in EOS"
    return ""


def _line(error: DataError) -> str:
    return "; ".join(line.strip() for line in str(error).split("\n")[:3])


def inspect(path: str | Path) -> dict[str, Any]:
    """Plain JSON values: counts, splits, tokenizer, recipe, and the beginning of the first document, decoded.

    Raises DataError as `Corpus.open` does.
    """
    base = Path(path)
    generations = [manifest for _, manifest in manifests(base)]
    newest = generations[-1]
    splits: dict[str, Any] = {}
    for name in newest.splits:
        of_all = [manifest.split(name) for manifest in generations]
        splits[name] = {"chunk_tokens": of_all[-1].chunk_tokens}
        for count in ("chunks", "tokens", "documents", "tokens_left_over"):
            splits[name][count] = sum(getattr(split, count) for split in of_all)
    corpus = Corpus.open(base, next(name for name in splits if splits[name]["chunks"]))
    first = corpus.docs(0)[0]
    text = Tokenizer.load(corpus.tokenizer_path).decode(corpus.tokens(0)[: min(200, int(first["length"]))])
    return {
        "path": str(base),
        "generations": len(generations),
        "content_hash": corpus.content_hash,
        "shards": sum(split.shards for manifest in generations for split in manifest.splits.values()),
        "bytes": sum(split.bytes for manifest in generations for split in manifest.splits.values()),
        "splits": splits,
        "token_dtype": newest.token_dtype,
        "vocab_size": newest.vocab_size,
        "tokenizer": dict(newest.tokenizer),
        "recipe": dict(newest.recipe),
        "counts": dict(newest.counts),
        "inputs": newest.inputs.count,
        "first_document": {"id": "".join(f"{half:016x}" for half in first["id"].tolist()), "text": text},
    }
