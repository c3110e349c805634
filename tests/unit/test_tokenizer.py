from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fmscale import tokenizer as module
from fmscale import tokenizer_training
from fmscale.errors import ConfigError, DataError
from fmscale.tokenizer import CONTROL, FIRST_BYTE_ID, SPECIAL, Tokenizer
from fmscale.tokenizer_training import train
from launcher.cli import app
from tests.word_corpora import text, texts, tokenizer

NAMES = [f"<{name}>" for name in SPECIAL] + ["<0x0A>", "\u2581", "<s>", "</s>", "\u2047", "\0", "\ufffd", "\u2585"]
TEXT = st.lists(st.one_of(st.text(), st.sampled_from([*NAMES, " ", "  ", "\n", "\t", "tide", " harbour", "("]))).map(
    "".join
)


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_any_text_comes_back_and_no_reserved_id_appears(sample: str) -> None:
    ids = tokenizer().encode(sample)
    assert tokenizer().decode(ids) == sample
    assert all(FIRST_BYTE_ID <= i < 512 for i in ids)
    assert tokenizer().token_bytes()[ids].sum() == len(sample.encode())


@settings(deadline=None)
@given(TEXT, TEXT)
def test_a_newline_ends_all_context(first: str, second: str) -> None:
    encode = tokenizer().encode
    assert encode(first + "\n" + second) == encode(first + "\n") + encode(second)


def test_every_reserved_name_is_only_text_in_a_text() -> None:
    for name in NAMES:
        assert min(tokenizer().encode(f"a {name}{name} b"), default=999) >= FIRST_BYTE_ID


def test_the_table_of_reserved_ids_is_fixed() -> None:
    assert (len(SPECIAL), FIRST_BYTE_ID) == (175, 175)
    assert [SPECIAL[name] for name in ("pad", "bos", "eos", "unk", "mask", "fim_prefix", "sentinel_0", "spare_63")] == [
        0, 1, 2, 3, 4, 7, 11, 174,
    ]  # fmt: skip


def test_batches_are_arrays_of_the_same_ids() -> None:
    batch = tokenizer().encode_batch([*texts(20), ""])
    assert [ids.tolist() for ids in batch] == [tokenizer().encode(sample) for sample in [*texts(20), ""]]
    assert all(ids.dtype == np.uint16 for ids in batch)


def test_words_are_cut_where_no_piece_lies_across(tmp_path: Path) -> None:
    """BPE has no ties, so that SentencePiece on the whole text must agree with our cutting of it into words."""
    mixed = "caf\u00e9(d\u00e9j\u00e0_3) \u2026vu\u2026 \u6f6e\u6c50a\u00e9 ("
    mixed += "\u2026y  \u00e9tide!\u2026 if(x)==[\u00e9];\n\n\t0x1F\n"
    model = train([mixed * 20 + sample for sample in texts(100)], tmp_path / "m", 600)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.model)
    assert any("\u00e9" in sp.IdToPiece(i)[:-1] for i in range(600))  # there are pieces that a careless cut would miss
    for number in range(100):
        sample = text(number).replace("\u2581", "~") + mixed[number % 20 :] + mixed
        assert model.encode(sample) == sp.Encode(sample)


def test_a_full_memo_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Tokenizer(tokenizer().model)
    monkeypatch.setattr(module, "_MEMO_WORDS", 3)
    for number in range(20):
        assert fresh.encode(text(number)) == tokenizer().encode(text(number))
    assert len(fresh._memo) <= 3
    long = "x" * 1000
    assert fresh.decode(fresh.encode(long)) == long
    assert long not in fresh._memo


@given(st.text(st.sampled_from("ab .\n\u2581\u00e9\u3000"), max_size=60), st.integers(1, 9))
def test_a_long_text_goes_in_lots_that_change_nothing(sample: str, at_once: int) -> None:
    whole = tokenizer().encode(sample)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_AT_ONCE", at_once)
        assert "".join(module._lots(sample)) == sample
        assert tokenizer().encode(sample) == whole
        words = [word for lot in module._lots(sample) for word in module._WORD.findall(lot)]
        assert words == module._WORD.findall(sample)


def test_half_a_surrogate_pair_is_refused() -> None:
    for _ in range(2):
        with pytest.raises(DataError, match=r"half a surrogate pair(.|\n)*found: U\+D801"):
            tokenizer().encode("fine \ud801 not")


def test_ids_outside_the_vocabulary_are_refused() -> None:
    assert tokenizer().decode([0, 1, *tokenizer().encode("rain"), 174, 2, 3]) == "rain"
    for bad in (512, -1):
        with pytest.raises(DataError, match=f"outside the vocabulary\n  expected: 0 to 511\n  found: {bad}"):
            tokenizer().decode([200, bad])


# ------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_is_a_function_of_the_set_of_texts(tmp_path: Path, kind: Any) -> None:
    model = train(texts(100), tmp_path / "a.model", 480, kind)
    assert train(texts(100)[::-1], tmp_path / "deep" / "b.model", 480, kind).fingerprint == model.fingerprint
    assert Tokenizer.load(tmp_path / "deep" / "b.model").fingerprint == model.fingerprint
    assert model.vocab_size == 480
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "deep"]
    for sample in texts(12):
        assert model.decode(model.encode(sample)) == sample
        assert len(model.encode(sample)) < len(sample.encode())


def test_special_names_in_the_training_text_do_no_harm(tmp_path: Path) -> None:
    hostile = ["<mask> <eos>\0<pad> \u2581\u2581 <0x41> <unk>\t</s>\n" * 50, *texts(100)]
    model = train(hostile, tmp_path / "m", 480)
    assert model.decode(model.encode(hostile[0])) == hostile[0]
    assert min(model.encode(hostile[0])) >= FIRST_BYTE_ID


def test_the_sample_is_bounded_and_spread() -> None:
    distinct = [f"{i}: {text(i)}" for i in range(1000)]
    sample = tokenizer_training._sample(distinct, 10_000)
    assert 10_000 <= sum(map(len, sample)) < 10_000 + 1_000
    assert sample == tokenizer_training._sample(distinct[::-1], 10_000)
    places = sorted(distinct.index(piece.decode()) for piece in sample)
    assert places[0] < 250
    assert places[-1] > 750
    giant = "tide " * 100_000
    assert sum(map(len, tokenizer_training._sample([giant], 10_000))) < 10_000 + tokenizer_training._PIECE_CHARS + 1
    lines = list(tokenizer_training._lines(tokenizer_training._sample([giant], 10_000)))
    assert max(map(len, lines)) <= tokenizer_training._LINE_CHARS


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    ("samples", "vocab_size", "message"),
    [
        (texts(3), 300, "expected: at least 432: 175 reserved ids, 256 bytes, and pieces\n  found: vocab_size=300"),
        (texts(3), 8192, r"expected: at most \d+ with these \d+ bytes of text\n  found: vocab_size=8192"),
        (["".join(map(chr, range(0x4E00, 0x5000)))], 500, r"expected: more than \d+, for the characters"),
    ],
)
def test_impossible_vocabularies_are_refused(
    tmp_path: Path, kind: Any, samples: list[str], vocab_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        train(samples, tmp_path / "m", vocab_size, kind)
    assert len(str(caught.value).splitlines()) <= 6
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("samples", [[], [""], ["", " \n\n"]])
def test_inputs_without_text_are_told_as_that(tmp_path: Path, samples: list[str]) -> None:
    with pytest.raises(DataError, match=r"hold no text to learn from\n  expected: .*\n  found: none\n  do: check"):
        train(samples, tmp_path / "m", 500)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_bytes": 0}, r"sample_bytes of .* is out of range\n  expected: 1 or more.*\n  found: 0\n"),
        ({"threads": 0}, r"threads of .* is out of range\n  expected: 1 to 1,024, .*\n  found: 0\n"),
        ({"threads": -1}, r"threads of .*\n  expected: 1 to 1,024, .*\n  found: -1\n"),
        ({"threads": 2000}, r"threads of .*\n  expected: 1 to 1,024, .*\n  found: 2000\n"),
    ],
)
def test_settings_of_training_that_are_out_of_range_are_refused(
    tmp_path: Path, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(iter(unread()), tmp_path / "m", 500, **settings)


def unread() -> Iterator[str]:
    raise AssertionError("read before the settings were looked at")
    yield ""


def test_a_place_that_can_hold_no_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, found in ((tmp_path, "a directory"), (tmp_path / "file" / "m", "(Not a directory|File exists)")):
        message = rf"cannot be written there\n  expected: a file to write.*\n  found: {place}: {found}\n  do: correct"
        with pytest.raises(ConfigError, match=message):
            train(unread(), place, 500)


@pytest.mark.parametrize("sample_mb", ["0", "-1", "nan", "inf"])
@pytest.mark.parametrize("command", ["train", "inspect"])
def test_a_sample_that_is_none_is_refused_by_the_commands(tmp_path: Path, command: str, sample_mb: str) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "m").write_bytes(foreign())
    arguments = {
        "train": [str(tmp_path / "a.txt"), "--output", str(tmp_path / "out")],
        "inspect": [str(tmp_path / "m"), str(tmp_path / "a.txt")],
    }
    shown = CliRunner().invoke(app, ["tokenizer", command, *arguments[command], "--sample-mb", sample_mb])
    assert isinstance(shown.exception, ConfigError)
    assert str(shown.exception) == (
        "--sample-mb is out of range\n  expected: megabytes of text, more than 0\n"
        f"  found: {sample_mb}\n  do: leave it out for the default, or give more than all text for all of it"
    )
    assert shown.stdout == ""


# -------------------------------------------------------------------------------------------------- loading


def foreign(**changed: Any) -> bytes:
    """A model like ours, but for what is `changed`."""
    model = io.BytesIO()
    arguments: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": 500, "normalization_rule_name": "identity", "add_dummy_prefix": False,
        "remove_extra_whitespaces": False, "byte_fallback": True, "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3,
        "pad_piece": "<pad>", "bos_piece": "<bos>", "eos_piece": "<eos>", "unk_piece": "<unk>",
        "control_symbols": [f"<{name}>" for name in CONTROL], "minloglevel": 4,
    }  # fmt: skip
    lines = (line for sample in texts(100) for line in sample.splitlines())
    sentencepiece.SentencePieceTrainer.Train(sentence_iterator=lines, model_writer=model, **{**arguments, **changed})
    return model.getvalue()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"", "id 0 is <pad>\n  found: the end of the vocabulary"),
        (b"no model at all", "expected: a SentencePiece model"),
        (foreign(control_symbols=[]), "id 4 is <mask>\n  found: <0x00>"),
        (foreign(eos_piece="</s>"), "id 2 is <eos>\n  found: </s>"),
        (foreign(byte_fallback=False), "id 175 is <0x00>\n  found: "),
        (
            foreign(control_symbols=[], user_defined_symbols=[f"<{name}>" for name in CONTROL]),
            "expected: <mask> as a control symbol",
        ),
        (foreign(normalization_rule_name="nfkc"), "expected: a model that keeps text as it is"),
        (foreign(add_dummy_prefix=True), "expected: a model that keeps text as it is"),
        (foreign(remove_extra_whitespaces=True), "expected: a model that keeps text as it is"),
    ],
)
def test_unfit_models_are_refused(tmp_path: Path, model: bytes, message: str) -> None:
    (tmp_path / "m").write_bytes(model)
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.load(tmp_path / "m")
    assert str(tmp_path) in "".join(caught.value.__notes__)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer here\n  expected: .*nothing.*\n  found: No such file"):
        Tokenizer.load(tmp_path / "nothing")
    assert Tokenizer(foreign()).vocab_size == 500
