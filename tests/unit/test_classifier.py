"""The quality classifier: it learns as a plain logistic regression does, scores stand alone, its file is checked."""

from __future__ import annotations

import json
import math
import random
import tokenize
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from data_pipeline import quality_model, quality_training
from data_pipeline.quality_model import QualityModel, features, probability
from data_pipeline.quality_training import BATCH, report, train
from data_pipeline.steps.classifier import classifier
from fmscale.corpus.permutation import derive_key, permute
from fmscale.errors import ConfigError, DataError
from launcher.cli import app
from tests.step_laws import assert_alone_as_together, run

ROOT = Path(__file__).parents[2]


def page(side: str, number: int) -> str:
    """Thirty words; two in three are of the side's own."""
    chosen = random.Random(f"{side} {number}")
    return " ".join(f"{chosen.choice((side, side, 'both'))}{chosen.randrange(50)}" for _ in range(30))


@pytest.fixture(scope="module")
def model() -> QualityModel:
    return train([page("good", i) for i in range(400)], [page("bad", i) for i in range(400)], bits=16)


@pytest.fixture(scope="module")
def model_file(model: QualityModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "quality.safetensors"
    model.save(path)
    return str(path)


def test_training_is_a_plain_logistic_regression_by_adagrad() -> None:
    """Against one in Python's own numbers, word by word."""
    texts = [page("good" if i % 2 else "bad", i) for i in range(150)]
    labels = np.array([float(i % 2) for i in range(150)])
    documents, rows = quality_training.Buckets(texts, 12), np.arange(150)
    fitted = quality_training._fit(documents, labels, rows, bits=12, epochs=3, rate=10.0, seed=5)
    weights: dict[int, float] = defaultdict(float)
    squares: dict[int, float] = defaultdict(lambda: quality_training._FIRST_SQUARE)
    bias, bias_square = 0.0, 1.0
    for epoch in range(3):
        order = permute(rows, 150, derive_key("quality model", 5, epoch)).tolist()
        for begin in range(0, 150, BATCH):
            some = order[begin : begin + BATCH]
            gradient: dict[int, float] = defaultdict(float)
            total = 0.0
            for row in some:
                buckets = documents[row].tolist()
                p = probability(bias + sum(weights[b] for b in buckets) / len(buckets))
                total += (p - labels[row]) / len(some)
                for b in buckets:
                    gradient[b] += (p - labels[row]) / len(some) / len(buckets)
            for b, g in gradient.items():
                squares[b] += g * g
                weights[b] -= 10.0 * g / math.sqrt(squares[b])
            bias_square += total * total
            bias -= 10.0 * total / math.sqrt(bias_square)
    assert fitted.bias == pytest.approx(bias, rel=1e-9)
    expected = np.zeros(1 << 12)
    expected[list(weights)] = list(weights.values())
    np.testing.assert_allclose(fitted.weights, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 1


def test_the_buckets_are_words_and_pairs_of_words() -> None:
    lists = quality_training.Buckets(["One two. three", "two THREE", "", "two"], 24)
    one, two, three, one_two, two_three = lists[0].tolist()
    assert sorted(lists[1].tolist()) == sorted([two, three, two_three])
    assert (lists[2].tolist(), lists[3].tolist()) == ([0], [two])
    assert len({one, two, three, one_two, two_three}) == 5


def test_two_kinds_of_real_text_are_told_apart() -> None:
    """Code against comments and docstrings of this repository."""
    code, prose = [], []
    for path in sorted(ROOT.glob("fmscale/**/*.py")):
        words: list[str] = []
        names: list[str] = []
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                (words if token.type in (tokenize.COMMENT, tokenize.STRING) else names).append(token.string)
        for kept, tokens in ((prose, " ".join(words).split()), (code, " ".join(names).split())):
            kept += [" ".join(tokens[i : i + 60]) for i in range(0, len(tokens) - 60, 60)]
    found = train(prose, code, bits=18).report
    assert found["auc"] > 0.97
    assert found["accuracy"] > 0.92
    assert found["calibration_error"] < 0.1


def test_the_order_of_files_and_doubles_change_nothing(model: QualityModel) -> None:
    good, bad = [page("good", i) for i in range(400)], [page("bad", i) for i in range(400)]
    again = train(good[::-1] + good[:50], bad[200:] + bad[:200], bits=16)
    assert np.array_equal(again.weights, model.weights)
    assert (again.bias, again.report) == (model.bias, model.report)
    assert not np.array_equal(train(good, bad, bits=16, seed=1).weights, model.weights)
    both = train([*good, "on both sides"], [*bad, "on both sides"], bits=16)
    assert both.report == {**model.report, "on_both_sides": 1}
    assert np.array_equal(both.weights, model.weights)


def test_a_sample_is_those_with_the_least_hashes_whatever_their_order() -> None:
    texts = [page("good", i) for i in range(300)]
    size = sum(map(len, texts[:100]))
    sample = quality_training._sample(texts, size)
    assert sample == quality_training._sample(texts[::-1], size)
    assert sample == quality_training._sample(texts[150:] + texts[:150] + texts[:9], size)
    everything = quality_training._sample(texts, 10**9)
    assert list(sample) == sorted(everything)[: len(sample)]
    assert 0.9 * size < sum(map(len, sample.values())) <= size


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0]), st.integers(-50, 50).map(lambda k: k / 7 + 0.01)),
        min_size=1,
        max_size=40,
    )
)
def test_the_reports_figures_are_what_they_are_called(rows: list[tuple[float, float]]) -> None:
    labels, logits = (np.array(column) for column in zip(*rows, strict=True))
    found = report(np.array([1.0, 0.0, 0.0]), labels, logits)
    scores = [probability(z) for z in logits.tolist()]
    pairs = [
        (a > b) + (a == b) / 2
        for a, p in zip(logits, labels, strict=True)
        if p
        for b, n in zip(logits, labels, strict=True)
        if not n
    ]
    assert found["auc"] == pytest.approx(sum(pairs) / len(pairs) if pairs else 0.0, abs=1e-4)
    assert found["accuracy"] == pytest.approx(
        np.mean([(s >= 0.5) == y for s, y in zip(scores, labels, strict=True)]), abs=1e-4
    )
    loss = -np.mean([math.log(s if y else 1 - s) for s, y in zip(scores, labels, strict=True)])
    assert found["log_loss"] == pytest.approx(loss, abs=1e-4)
    assert (found["trained"], sum(found["heldout"].values())) == ({"positive": 1, "negative": 2}, len(rows))
    gaps = [
        abs(sum(s - y for s, y in zip(scores, labels, strict=True) if min(int(s * 10), 9) == k)) / len(rows)
        for k in range(10)
    ]
    assert found["calibration_error"] == pytest.approx(sum(gaps), abs=1e-4)


@given(st.lists(st.text(max_size=60), max_size=6), st.integers(4, 40))
def test_a_text_is_scored_alone_as_among_others(texts: list[str], piece: int) -> None:
    rng = np.random.default_rng(0)
    linear = QualityModel(rng.normal(size=1 << 10).astype(np.float32), 0.25, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality_model, "_PIECE", piece)
        together = linear.logits(texts)
        assert together.tolist() == [linear.logits([text])[0] for text in texts]
        assert ["".join(quality_model._pieces(text)) for text in texts] == texts


def test_a_score_is_the_mean_weight() -> None:
    weights = np.arange(1 << 10, dtype=np.float32) / 100
    ((_, (words, _), (pairs, _)),) = features(["one two three"], 10)
    expected = -3 + (weights[words].sum() + weights[pairs].sum()) / 5
    linear = QualityModel(weights, -3.0, {})
    assert linear.logits(["one two three", ""]).tolist() == pytest.approx([expected, -3.0])
    assert linear.scores([""]) == [round(1 / (1 + math.exp(3)), 6)]
    assert (probability(-1e4), probability(1e4)) == (0.0, 1.0)


def test_a_recipe_drops_what_scores_low(model_file: str) -> None:
    good, bad = run("classifier", [page("good", 999), page("bad", 999)], model=model_file)
    assert (good.dropped, bad.dropped) == ("", "classifier/low")
    assert bad.found == bad.meta["classifier_score"] < 0.5 < good.meta["classifier_score"]
    kept = run("classifier", [page("good", 999), page("bad", 999)], model=model_file, threshold=0.0)
    assert [d.dropped for d in kept] == ["", ""]
    exactly = good.meta["classifier_score"]
    assert not run("classifier", [page("good", 999)], model=model_file, threshold=exactly)[0].dropped


@given(st.lists(st.integers(0, 60).map(lambda i: page("good" if i % 2 else "bad", i)), max_size=8))
def test_documents_are_judged_alone_as_among_others(model_file: str, texts: list[str]) -> None:
    assert_alone_as_together(partial(classifier, model=model_file), texts)


def test_a_model_comes_back_from_its_file(model: QualityModel, model_file: str) -> None:
    again = QualityModel.load(model_file)
    assert np.array_equal(again.weights, model.weights)
    assert (again.bias, again.report, again.bits) == (model.bias, model.report, 16)


def test_a_damaged_or_foreign_file_is_refused(model_file: str, tmp_path: Path) -> None:
    whole = Path(model_file).read_bytes()
    changed = bytearray(whole)
    changed[-3] ^= 1
    cases = {
        "changed": (bytes(changed), "its hash is not that of its weights"),
        "cut": (whole[:-5], "[Ee]rror|incomplete|invalid"),
        "text": (b"no model", "[Ee]rror|header"),
        "empty": (b"", "[Ee]rror|header"),
    }
    for name, (content, found) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            DataError, match=rf"no quality model, or a damaged one\n.*\n  found: .*{name}: .*({found}).*\n  do: copy"
        ):
            QualityModel.load(tmp_path / name)
    save_file({"weights": np.zeros(4, np.float32)}, tmp_path / "foreign")
    with pytest.raises(DataError, match=r"found: .*foreign: format None"):
        QualityModel.load(tmp_path / "foreign")
    save_file({"other": np.zeros(4, np.float32)}, tmp_path / "other")
    with pytest.raises(DataError, match=r"found: .*other: .*weights"):
        QualityModel.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (
            199,
            300,
            r"too few documents.*\n  expected: at least 200.*\n  found: 199 positive and 300 .*once\n  do: give",
        ),
        (
            200,
            2001,
            r"too unequal.*\n  expected: at most 10 times.*\n  found: 200 positive and 2,001 .*\n  do: give fewer",
        ),
    ],
)
def test_too_little_or_unbalanced_data_is_refused(good: int, bad: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train((f"good {i}" for i in range(good)), (f"bad {i}" for i in range(bad)))


def test_texts_on_both_sides_are_no_documents() -> None:
    with pytest.raises(
        DataError, match=r"found: 0 positive and 0 negative documents, each text counted once; 500 on both"
    ):
        train((f"text {i}" for i in range(500)), (f"text {i}" for i in range(500)))


@pytest.mark.parametrize(("name", "value"), [("bits", 9), ("bits", 25), ("epochs", 0)])
def test_parameters_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is out of range\n  expected: .*\n  found: {value}\n"):
        train([], [], **{name: value})


def test_a_threshold_out_of_range_is_refused(model_file: str) -> None:
    with pytest.raises(ConfigError, match=r"threshold of step classifier is out of range\n.*\n  found: 1\.5\n"):
        run("classifier", [], model=model_file, threshold=1.5)


def test_the_command_trains_and_tells(tmp_path: Path) -> None:
    for side in ("good", "bad"):
        lines = (json.dumps({"content": page(side, i)}) + "\n" for i in range(400))
        (tmp_path / f"{side}.jsonl").write_text("".join(lines))
    output = tmp_path / "quality.safetensors"
    arguments: list[Any] = ["data", "classifier", "train", "--text-field", "content", "--output", output, "--json"]
    arguments += ["--positive", tmp_path / "good.jsonl", "--negative", tmp_path / "bad.jsonl"]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["model"] == str(output)
    assert told["auc"] > 0.99
    assert set(told["kept"]) == {f"0.{i}" for i in range(1, 10)}
    assert QualityModel.load(output).scores([page("good", 999), page("bad", 999)])[0] > 0.5


def test_records_without_text_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "x"}\n' * 300)
    with pytest.raises(DataError, match=r"bad records in one go"):
        list(quality_training.texts_of([str(tmp_path / "x.jsonl")], "text"))
