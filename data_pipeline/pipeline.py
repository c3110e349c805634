"""What a corpus is to be made from and how: the recipe, its rules, and the list of steps that it stands for.

    recipe = load_recipe(["configs/data/mine.yaml"], ["inputs=[raw/**/*.jsonl]", "output=data/mine"])

Every rule here is a pure function of the recipe and of a document or a number of bytes, never of position, workers or
time: held-out by hash, chunk size by bytes. `recipe_record` is what the manifest keeps; it names no path of a machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import xxhash

from data_pipeline.document import Document
from data_pipeline.own_output import check_apart
from data_pipeline.ranges import MAX_NGRAM
from data_pipeline.read import Fields
from data_pipeline.registry import entries, rehearse
from fmscale.errors import ConfigError
from fmscale.settings import load_settings

MAX_CHUNK_TOKENS = 1 << 20
"""Of a chunk whose size is chosen here."""
LARGEST_CHUNK = 1 << 30
"""Tokens of a chunk that is asked for: places in it have 32 bits, and a worker holds it, 2 or 4 bytes a token."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of `fmscale data prepare`; docs/data.md explains them with an example."""

    inputs: list[str] = field(default_factory=list)
    """Files, directories or globs; their order is the corpus's, names sorted below each."""
    output: str = ""
    """Directory of the corpus; must be seen by all Ray nodes."""
    tokenizer: str = ""
    """tokenizer.model, written by `fmscale tokenizer train`."""
    text_field: str = "text"
    id_field: str = "id"
    """Field with a document's id; a hash of its text stands for the id of a record without one."""
    group_field: str = "group"
    """Field that `heldout_by=group` goes by; of a plain text file, the top directory that it stands in."""
    steps: list[Any] = field(default_factory=list)
    """What is done to documents, in order: `NAME` or `NAME: {parameter: value}`; see data_pipeline/registry.py."""
    dedup: Literal["exact", "off"] = "exact"
    """exact: of documents with the same text, the first stays."""
    heldout_fraction: float = 0.01
    """Share of documents (or of groups) kept out of training for evaluation, by hash; 0 keeps none."""
    heldout_by: Literal["document", "group"] = "document"
    decontaminate_ngram: int = 13
    """A held-out document that shares a run of so many words with training text is removed; 0 switches that off."""
    chunk_tokens: int = 0
    """Tokens of a chunk, a power of two; 0: 2^20, and less where 64 such chunks would not fill."""
    heldout_chunk_tokens: int = 0
    """The same of the held-out split; 0: a 16th of it or less."""
    task_bytes: int = 0
    """Input bytes of a task, the unit of work that a crash can cost; 0: a 32nd of the input, 1 to 512 MiB."""
    seed: int = 0
    """Of the held-out choice."""
    max_bad_share: float = 0.01
    """Unreadable records that are tolerated (and counted), as a share of all; up to `max_bad_run` always are.
    A file without a single good one counts as damaged input."""
    max_bad_run: int = 100
    """Unreadable records in one go after which the file is taken for something else."""
    max_bad_input: float = 0.01
    """Damaged input that is tolerated (left out and listed), as a share of all bytes."""
    keep_dropped: bool = False
    """Write dropped documents, with the reason, to OUTPUT/dropped."""


def load_recipe(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of YAML files left to right and `key=value` last, checked. Raises ConfigError."""
    recipe = load_settings(Recipe, files, overrides)
    check(recipe)
    return recipe


def check(recipe: Recipe) -> None:
    """Raise ConfigError for what cannot work, before anything is read."""
    for key, example in (("inputs", "'inputs=[raw/**/*.jsonl]'"), ("output", "output=data/mine")):
        if not getattr(recipe, key):
            raise ConfigError(f"the recipe has no `{key}`", expected=example, found="nothing", do=f"set {key}")
    check_apart(recipe.inputs, recipe.output)
    place = Path(recipe.output).absolute()
    for path in (place, *place.parents):
        if path.is_dir():
            break
        if path.exists():
            raise ConfigError(
                "the output cannot be a directory",
                expected="output=DIRECTORY, which is there or can be made",
                found=f"{path}, a file",
                do="set output to another name",
            )
    if not Path(recipe.tokenizer).is_file():
        raise ConfigError(
            "the tokenizer is missing",
            expected="tokenizer=FILE, written by `fmscale tokenizer train`",
            found=recipe.tokenizer or "nothing",
            do="train one on the same inputs, or correct the path",
        )
    for key in ("chunk_tokens", "heldout_chunk_tokens"):
        value = getattr(recipe, key)
        if value and (value < 2 or value & (value - 1)):
            below = 1 << max(1, abs(value).bit_length() - 1)
            raise ConfigError(
                f"{key} is no power of two",
                expected="0 (chosen by size) or 2, 4, 8 ...; at least data.seq_len of the runs to come",
                found=str(value),
                do=f"set {key} to {below} or {2 * below}",
            )
        if value > LARGEST_CHUNK:
            raise ConfigError(
                f"{key} is too large",
                expected=f"at most 2^{LARGEST_CHUNK.bit_length() - 1}: a chunk is held in memory as a whole",
                found=str(value),
                do=f"leave it out, which chooses by size, 2^{MAX_CHUNK_TOKENS.bit_length() - 1} at most",
            )
    if not 0 <= recipe.heldout_fraction <= 0.5:
        raise ConfigError(
            "heldout_fraction is out of range",
            expected="0 to 0.5",
            found=str(recipe.heldout_fraction),
            do="0.01 is usual; a small corpus needs more",
        )
    for key in ("max_bad_share", "max_bad_input"):
        if not 0 <= getattr(recipe, key) <= 1:  # no number is neither
            raise ConfigError(
                f"{key} is no share", expected="0 to 1; 0.01 is usual", found=str(getattr(recipe, key)), do="correct it"
            )
    for key in ("decontaminate_ngram", "task_bytes", "max_bad_run"):
        if getattr(recipe, key) < 0:
            raise ConfigError(
                f"{key} is negative", expected="0 or more", found=str(getattr(recipe, key)), do="set 0 or more"
            )
    if recipe.decontaminate_ngram > MAX_NGRAM:
        raise ConfigError(
            "decontaminate_ngram is out of range",
            expected=f"0 to {MAX_NGRAM} words",
            found=str(recipe.decontaminate_ngram),
            do="13 and 8 are usual",
        )
    rehearse(entries(recipe.steps))


def fields(recipe: Recipe) -> Fields:
    return Fields(recipe.text_field, recipe.id_field, recipe.group_field if recipe.heldout_by == "group" else "")


def is_heldout(recipe: Recipe, document: Document) -> bool:
    """Whether the hash of (seed, id or group) falls into the held-out share; what stands beside it changes nothing.

    A record without an id has `document.text_id` for one.
    """
    key = str(document.meta[recipe.group_field]) if recipe.heldout_by == "group" else document.id
    value: int = xxhash.xxh3_64_intdigest(f"{recipe.seed}\0{key}".encode("utf-8", "surrogatepass"))
    return value < math.ldexp(recipe.heldout_fraction, 64)


def auto_chunk_tokens(input_bytes: int) -> int:
    """Training chunk: 2^20 tokens, or of little input the largest power of two of which about 64 fill, at least 2^12.

    Four bytes are taken for a token. The end of the stream that fills no chunk is then under 2 % of it.
    """
    return _power_of_two(input_bytes // 4 // 64, 1 << 12, MAX_CHUNK_TOKENS)


def auto_heldout_chunk_tokens(tokens: int, chunk_tokens: int) -> int:
    """Held-out chunk: the largest power of two of which 16 fill, from 2^10 up to the training chunk's."""
    return _power_of_two(tokens // 16, min(1 << 10, chunk_tokens), chunk_tokens)


def _power_of_two(below: int, least: int, most: int) -> int:
    return min(max(1 << max(below, 1).bit_length() - 1, least), most)


def recipe_record(recipe: Recipe) -> dict[str, Any]:
    """What a corpus remembers of its recipe: everything that decides its bytes; inputs and tokenizer go by hash.

    `max_bad_share` and `max_bad_input` are not in it: they decide whether there is a corpus, never which.
    """
    names = (
        *("text_field", "id_field", "group_field", "dedup", "decontaminate_ngram", "chunk_tokens"),
        *("heldout_chunk_tokens", "task_bytes", "max_bad_run"),  # a corpus lacks what a run of bad records costs
    )
    record = {name: getattr(recipe, name) for name in names}
    record["steps"] = [entry.record() for entry in entries(recipe.steps)]
    record["heldout"] = {
        "fraction": recipe.heldout_fraction,
        "by": recipe.heldout_by,
        "seed": recipe.seed,
        "rule": "xxh3_64(utf8('SEED\\0' + key)) < fraction * 2^64; "
        "key: by document its id, or without one 'xxh3:' + hex(xxh3_128(utf8(text))); by group its group",
    }
    return record
