"""Tokenizers of others: their own libraries are the oracles of ids and text; what does not fit is refused."""

from __future__ import annotations

import builtins
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from typer.testing import CliRunner

from data_pipeline.run import prepare
from data_pipeline.tokenizer_report import describe, measure
from fmscale.corpus.manifest import Manifest
from fmscale.corpus.shards import Corpus
from fmscale.errors import ConfigError, DataError
from fmscale.foreign_tokenizer import ForeignTokenizer, bring
from fmscale.tokenizer import PROBE, Tokenizer
from fmscale.tokenizer_training import train
from launcher.cli import app
from tests.integration.test_prepare import recipe_of
from tests.raw_text import unlike
from tests.word_corpora import texts

EOS = "<|endoftext|>"


def bytelevel() -> tokenizers.Tokenizer:
    """As GPT-2's: byte-level BPE."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(100), trainer)
    return tokenizer


def llama(**changed: Any) -> bytes:
    """As Llama 2's: SentencePiece BPE with byte fallback and a space before every text."""
    model = io.BytesIO()
    arguments: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": 400, "normalization_rule_name": "identity", "add_dummy_prefix": True,
        "remove_extra_whitespaces": False, "byte_fallback": True, "allow_whitespace_only_pieces": True,
        "minloglevel": 4,
    }  # fmt: skip
    lines = (line for sample in texts(100) for line in sample.splitlines())
    sentencepiece.SentencePieceTrainer.Train(sentence_iterator=lines, model_writer=model, **{**arguments, **changed})
    return model.getvalue()


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ForeignTokenizer, Any]]:
    """kind -> (ours, the oracle's encoding of a text)"""
    directory = tmp_path_factory.mktemp("foreign")
    oracle = bytelevel()
    oracle.save(str(directory / "tokenizer.json"))
    oracle.encode_special_tokens = True
    (directory / "llama.model").write_bytes(llama())
    sp = sentencepiece.SentencePieceProcessor(model_proto=llama())
    return {
        "huggingface": (
            ForeignTokenizer(bring(directory)),
            lambda text: oracle.encode(text, add_special_tokens=False).ids,
        ),
        "sentencepiece": (ForeignTokenizer(bring(directory / "llama.model")), sp.Encode),
    }


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    [PROBE, EOS, f"a{EOS}b", "</s>"]
)


@settings(deadline=None)
@given(samples=st.lists(TEXTS, max_size=5))
@pytest.mark.parametrize("kind", ["huggingface", "sentencepiece"])
def test_ids_are_the_librarys_own(
    kind: str, samples: list[str], brought: dict[str, tuple[ForeignTokenizer, Any]]
) -> None:
    tokenizer, oracle = brought[kind]
    for text, ids in zip(samples, tokenizer.encode_batch(samples), strict=True):
        assert ids.tolist() == list(oracle(text)) == tokenizer.encode(text)
        assert tokenizer.eos_id not in ids, "text that looks like a special token is text"
        if kind == "huggingface":
            assert tokenizer.decode(ids) == text
            assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_what_is_known_of_them(brought: dict[str, tuple[ForeignTokenizer, Any]]) -> None:
    for kind, (tokenizer, _) in brought.items():
        assert tokenizer.exact == (kind == "huggingface"), "SentencePiece reads its own sign for a space as one"
        assert tokenizer.dtype == np.uint16
        said = describe(tokenizer)
        assert (said["vocab_size"], said["eos_id"]) == (400, {"huggingface": 0, "sentencepiece": 2}[kind])
    spaced = brought["sentencepiece"][0]
    assert spaced.token_bytes()[spaced.encode("a b")].sum() == 4, "the space before every text counts"


@pytest.mark.parametrize("kind", ["huggingface", "sentencepiece"])
def test_a_corpus_is_prepared_and_read_with_it(
    kind: str, tmp_path: Path, brought: dict[str, tuple[ForeignTokenizer, Any]]
) -> None:
    tokenizer = brought[kind][0]
    (tmp_path / "t.model").write_bytes(tokenizer.model)
    lines = [json.dumps({"id": str(n), "text": unlike(n)}) for n in range(60)]
    (tmp_path / "raw.jsonl").write_text("\n".join(lines))
    changes = {"heldout_fraction": 0.0, "heldout_by": "document"}
    recipe = recipe_of(tmp_path / "raw.jsonl", tmp_path / "c", **changes)
    prepare(type(recipe)(**{**vars(recipe), "tokenizer": str(tmp_path / "t.model")}), workers=0)
    manifest, corpus = Manifest.load(tmp_path / "c"), Corpus.open(tmp_path / "c")
    assert manifest.tokenizer["fingerprint"] == tokenizer.fingerprint
    assert manifest.tokenizer["eos_id"] == tokenizer.eos_id
    loaded = Tokenizer.load(corpus.tokenizer_path)
    first = corpus.docs(0)[0]
    tokens = corpus.tokens(0)[: int(first["length"])]
    assert tokens[-1] == tokenizer.eos_id
    assert loaded.decode(tokens[:-1]) == unlike(0)


def test_one_that_normalises_is_told(tmp_path: Path) -> None:
    tokenizer = bytelevel()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    shown = CliRunner().invoke(app, ["tokenizer", "import", str(tmp_path), "--output", str(tmp_path / "t.model")])
    assert shown.exit_code == 0, shown.output
    assert "decoding does not give every text back" in shown.stderr
    assert not ForeignTokenizer((tmp_path / "t.model").read_bytes()).exact


def test_one_whose_pieces_do_not_tell_the_bytes_of_a_text_is_refused(tmp_path: Path) -> None:
    """It writes another letter for each `a` and takes that back, so that a piece is longer than its text."""
    tokenizer = bytelevel()
    tokenizer.normalizer = normalizers.Replace("a", "ΔΔ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("ΔΔ", "a")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = len(PROBE.encode())
    with pytest.raises(
        DataError,
        match=rf"cannot be told, and so no bits per byte\n  expected: {size} bytes of a text of that length\n"
        rf"  found: {size + 3 * PROBE.count('a')} bytes, by its pieces\n  do: train a tokenizer",
    ):
        bring(tmp_path)


def test_our_own_is_not_brought_in_again(tmp_path: Path) -> None:
    """It would be the same tokenizer under another fingerprint, so that corpora of both could not be mixed."""
    own = tmp_path / "own.model"
    train(texts(100), own, 500)
    (tmp_path / "there.model").write_bytes(bring_bytes(tmp_path))
    for path in (own, tmp_path / "there.model"):
        shown = CliRunner().invoke(app, ["tokenizer", "import", str(path), "--output", str(tmp_path / "again.model")])
        assert isinstance(shown.exception, ConfigError)
        assert re.fullmatch(
            r"this is a tokenizer of fmscale already\n  expected: one that others trained\n"
            rf"  found: {path}, fingerprint {Tokenizer.load(path).fingerprint}\n  do: use it as it is: .*",
            str(shown.exception),
        )
        assert not (tmp_path / "again.model").exists()
    shown = CliRunner().invoke(app, ["tokenizer", "import", str(tmp_path), "--output", str(tmp_path)])
    assert isinstance(shown.exception, ConfigError)
    assert "the tokenizer cannot be written there" in str(shown.exception)


def test_the_end_of_a_document_is_found_or_asked_for(tmp_path: Path) -> None:
    (tmp_path / "m.model").write_bytes(llama(eos_id=-1))
    with pytest.raises(
        ConfigError, match=r"which token ends a document\n  expected: .*\n  found: .*\n  do: name the token"
    ):
        bring(tmp_path / "m.model")
    with pytest.raises(ConfigError, match=r"found: .*m\.model without a token <end>"):
        bring(tmp_path / "m.model", "<end>")
    tokenizer = bytelevel()
    tokenizer.add_special_tokens(["<stop>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert ForeignTokenizer(bring(tmp_path)).eos_id == 0
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}, "pad_token": EOS}))
    made = ForeignTokenizer(bring(tmp_path))
    assert (made.eos_id, made.pad_id, made.bos_id) == (400, 0, -1)
    assert ForeignTokenizer(bring(tmp_path, EOS)).eos_id == 0


def test_what_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"no tokenizer here\n  expected: a SentencePiece .*\n  found: .*nowhere: No such"
    ):
        bring(tmp_path / "nowhere")
    for content, what in (
        (b"no model", "a SentencePiece model or a tokenizer.json"),
        (b'{"model": 3}', "a tokenizer.json of the tokenizers library"),
    ):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(
            DataError, match=rf"a foreign tokenizer cannot be read\n  expected: {what}\n  found: .+\n  do: fetch"
        ):
            bring(tmp_path / "bad")
    whole = json.loads(bring_bytes(tmp_path))
    changes: dict[str, dict[str, Any]] = {
        "version 2, kind huggingface": {"fmscale-tokenizer": 2},
        "version 1, kind other": {"kind": "other"},
        "not enough values": {"ids": [1]},
        "(Only base64|Incorrect padding)": {"model": "?"},
    }
    for found, change in changes.items():
        with pytest.raises(
            DataError,
            match=r"no tokenizer of fmscale\n  expected: a file that `fmscale tokenizer import` wrote, version 1\n"
            rf"  found: .*{found}.*\n  do: bring the tokenizer in again",
        ):
            ForeignTokenizer(json.dumps({**whole, **change}).encode())
    made = ForeignTokenizer(json.dumps(whole).encode())
    with pytest.raises(DataError, match=r"outside the vocabulary\n  expected: 0 to 399\n  found: 400"):
        made.decode([3, 400])
    with pytest.raises(DataError, match=r"a text cannot be encoded\n  expected: text that has a UTF-8 form"):
        made.encode("half \ud800")
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs the tokenizers package\n.*\n.*\n  do: pip install 'fmscale\[hf\]'"):
        ForeignTokenizer(json.dumps(whole).encode())


def bring_bytes(directory: Path) -> bytes:
    bytelevel().save(str(directory / "tokenizer.json"))
    return bring(directory / "tokenizer.json")


def test_bytes_per_token_by_source_and_language(
    tmp_path: Path, brought: dict[str, tuple[ForeignTokenizer, Any]]
) -> None:
    tokenizer = brought["huggingface"][0]
    for source in ("a", "b"):
        (tmp_path / source).mkdir()
        lines = [json.dumps({"text": unlike(n), "language": "en" if n % 2 else "de"}) for n in range(20)]
        (tmp_path / source / "x.jsonl").write_text("\n".join(lines))
    found = list(measure(tokenizer, [str(tmp_path)], [], "text", 1 << 30))
    assert [(line["source"], line["language"]) for line in found] == [
        ("a", "de"), ("a", "en"), ("b", "de"), ("b", "en"), ("all", ""),
    ]  # fmt: skip
    assert found[-1]["documents"] == 40
    assert found[-1]["bytes"] == 2 * sum(len(unlike(n).encode()) for n in range(20))
    assert found[-1]["tokens"] == 2 * sum(len(tokenizer.encode(unlike(n))) for n in range(20))
    sampled = list(measure(tokenizer, [str(tmp_path)], [], "text", 3000))[-1]
    assert 0 < sampled["documents"] < 40
    (tmp_path / "t.model").write_bytes(tokenizer.model)
    shown = CliRunner().invoke(app, ["tokenizer", "inspect", str(tmp_path / "t.model"), str(tmp_path / "a"), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout.splitlines()[-1])["bytes_per_token"] > 1
