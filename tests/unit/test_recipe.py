"""Recipes: settings refused with their remedy; held-out choice and chunk sizes as functions of hash and size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.document import Document
from data_pipeline.inputs import pin
from data_pipeline.pipeline import (
    Recipe,
    auto_chunk_tokens,
    auto_heldout_chunk_tokens,
    fields,
    is_heldout,
    load_recipe,
    recipe_record,
)
from data_pipeline.read import read_piece
from fmscale.errors import ConfigError
from tests.word_corpora import GOLDEN

WHOLE = ["inputs=[raw]", "output=out", f"tokenizer={GOLDEN / 'tokenizer.model'}"]


def test_files_then_settings(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("inputs: [raw/a.jsonl, raw/b.jsonl]\noutput: one\nheldout_fraction: 0.05\n")
    recipe = load_recipe([tmp_path / "a.yaml"], [WHOLE[2], "output=two", "heldout_by=group", "chunk_tokens=4096"])
    assert recipe == Recipe(
        inputs=["raw/a.jsonl", "raw/b.jsonl"],
        output="two",
        tokenizer=str(GOLDEN / "tokenizer.model"),
        heldout_fraction=0.05,
        heldout_by="group",
        chunk_tokens=4096,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["inputs=[]"], r"the recipe has no `inputs`\n  expected: 'inputs=\[raw"),
        (["output=''"], r"the recipe has no `output`"),
        (["tokenizer=''"], r"the tokenizer is missing\n.*\n  found: nothing"),
        (["tokenizer=nowhere.model"], r"the tokenizer is missing\n.*\n  found: nowhere\.model\n  do: train one"),
        (
            ["chunk_tokens=3000"],
            r"chunk_tokens is no power of two\n.*\n  found: 3000\n  do: set chunk_tokens to 2048 or 4096",
        ),
        (["heldout_chunk_tokens=1"], r"heldout_chunk_tokens is no power of two\n.*\n  found: 1\n"),
        (["chunk_tokens=-8"], r"chunk_tokens is no power of two\n.*\n  found: -8"),
        (["heldout_fraction=0.9"], r"heldout_fraction is out of range\n  expected: 0 to 0\.5\n  found: 0\.9"),
        (["decontaminate_ngram=-1"], r"decontaminate_ngram is negative\n.*\n  found: -1"),
        (
            ["decontaminate_ngram=1000000000"],
            r"ngram is out of range\n  expected: 0 to 1000 words\n  found: 1000000000",
        ),
        (["max_bad_run=-1"], r"max_bad_run is negative\n.*\n  found: -1"),
        (
            ["max_bad_share=-0.5"],
            r"max_bad_share is no share\n  expected: 0 to 1; .*\n  found: -0\.5\n  do: correct it",
        ),
        (["max_bad_share=5"], r"max_bad_share is no share\n.*\n  found: 5"),
        (["max_bad_share=.nan"], r"max_bad_share is no share\n.*\n  found: nan"),
        (["max_bad_input=.nan"], r"max_bad_input is no share\n.*\n  found: nan"),
        (["heldout_fraction=.nan"], r"heldout_fraction is out of range\n.*\n  found: nan"),
        (
            [f"chunk_tokens={1 << 40}"],
            r"chunk_tokens is too large\n  expected: at most 2\^30.*\n  found: 1099511627776\n",
        ),
        ([f"heldout_chunk_tokens={1 << 31}"], r"heldout_chunk_tokens is too large\n"),
        (
            [f"output={GOLDEN / 'tokenizer.model'}"],
            r"output cannot be a directory\n.*\n  found: .*/tokenizer\.model, a",
        ),
        (
            ["steps=[{language: {keep: {no: 0.5}}}]"],
            r"key was read as true or false.*\n.*\n  found: .*False in .*\n.*quote",
        ),
        (["steps=[nowhere:step]"], r"step of the recipe cannot be loaded\n.*\n  found: nowhere:step: No module named"),
        (["steps=[json:nothing]"], r"step of the recipe cannot be loaded\n.*\n  found: json:nothing: .*no attribute"),
        (["steps=[json]"], r"unknown step: json"),
        (["chunk_token=8"], r"unknown setting `chunk_token`\n.*\n.*\n  do: did you mean `chunk_tokens`"),
        (
            ["inputs=raw/a.jsonl"],
            r"`inputs` is a list\n  expected: inputs=\[raw/a\.jsonl, \.\.\.\], all of its entries",
        ),
        (["steps=exact_dedup"], r"`steps` is a list\n  expected: steps=\[exact_dedup, \.\.\.\], all of its"),
        (["inputs=3"], r"`inputs` is a list\n  expected: inputs=\[VALUE, \.\.\.\]"),
        (["dedup=fuzzy"], r"setting `dedup` has a wrong value"),
    ],
)
def test_what_cannot_work_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe([], WHOLE + settings)
    assert len(str(caught.value).splitlines()) <= 6


@pytest.mark.parametrize("word", ["off", "'off'", '"off"', "OFF", "no"])
def test_off_needs_no_quotes(tmp_path: Path, word: str) -> None:
    """YAML reads it as False."""
    assert load_recipe([], [*WHOLE, f"dedup={word}"]).dedup == "off"
    (tmp_path / "a.yaml").write_text(f"dedup: {word}\n")
    assert load_recipe([tmp_path / "a.yaml"], WHOLE).dedup == "off"
    with pytest.raises(ConfigError, match=r"setting `dedup` has a wrong value\n"):
        load_recipe([], [*WHOLE, "dedup=on"])


@pytest.mark.parametrize(
    ("inputs", "output", "refused"),
    [
        ("raw", "raw", True),
        ("raw", "raw/deep/corpus", True),
        ("raw/", "linked/corpus", True),
        ("file://{here}/raw", "raw/corpus", True),
        ("raw", "rawer", False),
        ("raw/deep", "raw/corpus", False),
        ("raw/**/*.jsonl", "raw/corpus", True),
        ("raw/*/*.jsonl", "raw/corpus", True),
        ("**/*", "corpus", True),
        ("**", "corpus", True),
        ("raw/**/*.zst", "raw/corpus", True),
        ("raw/*", "raw/corpus", False),
        ("raw/*.jsonl", "raw/corpus", False),
        ("**/*.txt", "corpus", False),
        ("**/*.jsonl", ".hidden", False),
        ("raw/a.jsonl", "raw", False),
        ("https://example.org/raw/", "raw", False),
        ("hf:raw?split=train", "raw", False),
    ],
)
def test_an_output_among_the_inputs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: str, output: str, refused: bool
) -> None:
    (tmp_path / "raw/deep").mkdir(parents=True)
    (tmp_path / "raw/a.jsonl").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "raw/deep")
    monkeypatch.chdir(tmp_path)
    inputs = inputs.format(here=tmp_path)
    if not refused:
        load_recipe([], [*WHOLE, f"inputs=['{inputs}']", f"output={output}"])
        return
    with pytest.raises(
        ConfigError,
        match=r"^the output lies among the inputs, .*\n  expected: output outside .*\n"
        rf"  found: output={output} and the input {re.escape(inputs)}\n  do: set output to a directory beside",
    ):
        load_recipe([], [*WHOLE, f"inputs=['{inputs}']", f"output={output}"])


def test_the_heldout_choice_is_a_fixed_function_of_seed_and_name() -> None:
    names = [f"doc-{i}" for i in range(20_000)]
    few, more = Recipe(heldout_fraction=0.02), Recipe(heldout_fraction=0.1)
    by_few = {name for name in names if is_heldout(few, Document(name, ""))}
    by_more = {name for name in names if is_heldout(more, Document(name, "other text", record=3))}
    assert by_few < by_more, "a larger share keeps the documents of a smaller one"
    assert len(by_few) == pytest.approx(400, abs=5 * 400**0.5)
    assert len(by_more) == pytest.approx(2000, abs=5 * 2000**0.5)
    other = {name for name in names if is_heldout(Recipe(heldout_fraction=0.02, seed=1), Document(name, ""))}
    assert len(by_few & other) < 50
    assert sorted(by_few, key=lambda name: int(name[4:]))[:3] == ["doc-8", "doc-55", "doc-91"], "golden"
    assert not any(is_heldout(Recipe(heldout_fraction=0), Document(name, "")) for name in names)


def test_without_ids_the_text_decides_and_no_place(tmp_path: Path) -> None:
    """A line inserted at the top, a renamed file, another order: every text stays on its side."""
    recipe = Recipe(heldout_fraction=0.2, seed=3)
    lines = [json.dumps({"text": f"text number {i}"}) for i in range(500)]

    def chosen(name: str, lines: list[str]) -> set[str]:
        path = tmp_path / name
        path.mkdir()
        (path / f"{name}.jsonl").write_text("\n".join(lines))
        (path / f"{name}.txt").write_text("plain text number 0")  # held out, as its own text decides
        pinned = pin([str(path)])
        pieces = [piece for task in pinned.tasks for piece in task]
        read = [d for piece in pieces for d in read_piece(pinned.files[piece.file], piece, fields(recipe), 0)]
        return {document.text for document in read if is_heldout(recipe, document)}

    first = chosen("first", lines)
    assert len(first) == pytest.approx(100, abs=45)
    assert chosen("renamed", lines) == first
    assert chosen("longer", [json.dumps({"text": "inserted"}), *lines]) - {"inserted"} == first
    assert chosen("reversed", lines[::-1]) == first
    key = f"3\0xxh3:{xxhash.xxh3_128_hexdigest(b'text number 0')}"  # as `rule` in the manifest says it
    assert ("text number 0" in first) == (xxhash.xxh3_64_intdigest(key.encode()) < 0.2 * 2**64)
    assert recipe_record(recipe)["heldout"]["rule"] == (
        "xxh3_64(utf8('SEED\\0' + key)) < fraction * 2^64; "
        "key: by document its id, or without one 'xxh3:' + hex(xxh3_128(utf8(text))); by group its group"
    )


def test_groups_go_as_a_whole() -> None:
    recipe = Recipe(heldout_fraction=0.3, heldout_by="group", group_field="site")
    for group in range(100):
        chosen = {is_heldout(recipe, Document(f"{i}", "", meta={"site": group})) for i in range(5)}
        assert len(chosen) == 1


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_chunks_grow_with_the_input(small: int, large: int) -> None:
    small, large = sorted((small, large))
    for size in (auto_chunk_tokens(small), auto_chunk_tokens(large)):
        assert size & (size - 1) == 0
        assert 1 << 12 <= size <= 1 << 20
    assert auto_chunk_tokens(small) <= auto_chunk_tokens(large)
    if large // 4 >= 64 << 12:
        assert large // 4 // auto_chunk_tokens(large) >= 64
    heldout = auto_heldout_chunk_tokens(small, auto_chunk_tokens(large))
    assert heldout & (heldout - 1) == 0
    assert heldout <= auto_chunk_tokens(large)


def test_the_record_names_no_place_and_knows_a_step_by_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_step_of_mine.py").write_text("def step(documents):\n    yield from documents\n")
    recipe = load_recipe([], [*WHOLE, "steps=[a_step_of_mine:step]"])
    before = recipe_record(recipe)
    assert str(tmp_path) not in str(before)
    assert str(GOLDEN) not in str(before)
    (tmp_path / "a_step_of_mine.py").write_text("def step(documents):\n    yield from list(documents)\n")
    assert recipe_record(recipe) != before
