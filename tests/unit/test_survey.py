"""Surveys of parts merge into the survey of the whole, bounded, and say what was counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import fate
from data_pipeline.document import Document, drop
from data_pipeline.fate import SAMPLE_CHARACTERS, SAMPLES, Fate, bin_edge, bin_number
from data_pipeline.survey import FILE, LARGEST_CLUSTER, TIMES_FILE, Survey, cluster_bin, read_survey, write_survey
from fmscale.errors import DataError

names = st.one_of(st.sampled_from([f"name{i}" for i in range(12)]), st.text(max_size=5))
values = st.one_of(st.none(), st.floats(), st.integers(0, 1000), names)
facts = st.tuples(names, st.text(max_size=40), st.one_of(st.just(""), names), values, names, st.integers(0, 9))


def document(number: int, fact: tuple[Any, ...]) -> Document:
    name, text, reason, found, language, _ = fact
    made = Document(name, text, f"file{number % 3}", {"language": language}, number % 3, number)
    return drop(made, reason, found) if reason else made


def survey_of(documents: Iterable[tuple[Document, int]]) -> Survey:
    survey = Survey()
    for each, tokens in documents:
        survey.add(each, tokens)
        survey.add_clusters("exact", {len(each.text): 1 + tokens})
        survey.add_seconds({f"step{tokens % 2}": tokens / 3})
    return survey


def merged(*surveys: Survey) -> Survey:
    total = Survey()
    for each in surveys:
        total.merge(each)
    return total


@pytest.fixture(scope="module", autouse=True)
def _few_names() -> Iterator[None]:
    """So few that generated documents have more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fate, "NAMES", 5)
        yield


@given(st.lists(facts, max_size=50), st.integers(0, 50), st.integers(0, 50))
def test_parts_merge_to_the_survey_of_the_whole_in_any_grouping_and_order(facts: list[Any], a: int, b: int) -> None:
    documents = [(document(number, fact), fact[5]) for number, fact in enumerate(facts)]
    a, b = sorted((a, b))
    parts = [survey_of(documents[:a]), survey_of(documents[a:b]), survey_of(documents[b:])]
    whole = survey_of(documents).to_json()
    assert merged(merged(*parts[:2]), parts[2]).to_json() == whole
    assert merged(parts[0], merged(*parts[1:])).to_json() == whole
    assert merged(*parts[::-1]).to_json() == whole
    assert survey_of(documents[::-1]).to_json() == whole


@given(st.lists(facts, max_size=50))
def test_a_survey_survives_json_and_its_totals_are_those_of_the_documents(facts: list[Any]) -> None:
    documents = [document(number, fact) for number, fact in enumerate(facts)]
    survey = survey_of((each, 1) for each in documents)
    written = json.dumps(survey.to_json(), allow_nan=False)
    assert json.dumps(Survey.from_json(json.loads(written)).to_json()) == written
    kept, dropped = [d for d in documents if not d.dropped], [d for d in documents if d.dropped]
    assert (survey.kept.documents, survey.dropped.documents) == (len(kept), len(dropped))
    assert (survey.kept.characters, survey.dropped.characters) == tuple(
        sum(len(d.text) for d in side) for side in (kept, dropped)
    )
    counts = Counter(d.dropped[: fate.NAME_CHARACTERS] for d in dropped)
    assert {name: fate.documents for name, fate in survey.reasons.items()}.items() <= counts.items(), "whole counts"
    assert len(survey.reasons) == min(len(counts), 5)
    languages = Counter(d.meta["language"] for d in documents)
    assert all(of.kept + of.dropped == languages[name] for name, of in survey.languages.items())
    assert sum(survey.clusters.get("exact", {}).values()) == 2 * len(documents)


def test_samples_are_few_short_and_those_of_the_smallest_hashes() -> None:
    texts = {f"id{i}": f"{i} " * 2000 for i in range(100)}
    survey = survey_of((Document(name, text, record=i), 1) for i, (name, text) in enumerate(texts.items()))
    samples = survey.kept.samples
    assert len(samples) == SAMPLES
    assert [sample.hash for sample in samples] == sorted(sample.hash for sample in samples)
    assert all(sample.text == texts[sample.id][:SAMPLE_CHARACTERS] for sample in samples)
    assert len({sample.id for sample in samples}) == SAMPLES


def test_a_survey_stays_small_whatever_it_is_given() -> None:
    survey = Survey()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fate, "NAMES", 256)
        for i in range(3000):
            long = f"{i}" * 500
            made = Document(long, "x" * 10_000, long, {"language": long})
            survey.add(drop(made, f"r{i}" + long, long) if i % 2 else drop(made, "one", 1.1**i))
    assert len(json.dumps(survey.to_json())) < 4_000_000
    assert survey.dropped.documents == 3000


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_value_lies_in_its_bin_which_is_at_most_a_quarter_of_it_wide(value: float) -> None:
    place = bin_number(value)
    low = abs(bin_edge(place))
    assert low <= abs(value)
    assert (place > 0) == (value >= 2.0**-20)
    if abs(value) < 2.0**40:
        high = abs(bin_edge(place + (1 if place >= 0 else -1)))
        assert abs(value) < high
        assert place == 0 or high - low <= low / 4


@given(st.integers(-240, 240))
def test_the_edge_of_a_bin_lies_in_it(place: int) -> None:
    assert bin_number(bin_edge(place)) == place


@given(st.integers(1, 10**9))
def test_clusters_are_counted_by_size_or_by_the_next_power_of_two(size: int) -> None:
    assert cluster_bin(size) == size if size <= LARGEST_CLUSTER else cluster_bin(size) / 2 < size <= cluster_bin(size)


def test_what_is_dropped_later_moves_to_its_reason() -> None:
    survey = survey_of((Document(f"{i}", "text"), 1) for i in range(10))
    survey.drop_later("heldout_overlap", 3)
    assert (survey.kept.documents, survey.dropped.documents) == (7, 3)
    assert survey.reasons["heldout_overlap"].documents == 3


def test_report_json_is_for_one_plan_only(tmp_path: Path) -> None:
    assert read_survey(tmp_path, "p1") is None
    survey = survey_of([(Document("a", "b", meta={"language": 7}), 1)])
    write_survey(tmp_path, survey, "p1")
    again = read_survey(tmp_path, "p1")
    assert again is not None
    assert again.to_json() == survey.to_json()
    with pytest.raises(DataError, match=r"report.json does not belong to this corpus\n.*of plan p2"):
        read_survey(tmp_path, "p2")


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[1]", b'{"format": "fmscale-report", "version": 1, "plan": "p"}'])
def test_a_damaged_report_json_is_refused(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / FILE).write_bytes(damaged)
    with pytest.raises(DataError, match="does not belong to this corpus"):
        read_survey(tmp_path, "p")


def test_times_stand_apart_so_that_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    for turn, spent in enumerate((5, 500)):
        survey = survey_of([(Document("a", "b"), 1)])
        survey.add_seconds({"slow": spent})
        (tmp_path / str(turn)).mkdir()
        write_survey(tmp_path / str(turn), survey, "p")
    assert (tmp_path / "0" / FILE).read_bytes() == (tmp_path / "1" / FILE).read_bytes()
    (tmp_path / "0" / TIMES_FILE).unlink()
    found = [read_survey(tmp_path / turn, "p") for turn in "01"]
    assert [each and each.nanoseconds["slow"] for each in found] == [0, 500 * 10**9]
    (tmp_path / "1" / TIMES_FILE).write_text("{}")
    with pytest.raises(DataError, match=r"times.json does not belong"):
        read_survey(tmp_path / "1", "p")


def test_fates_of_nothing_are_equal() -> None:
    assert Fate.from_json(Fate().to_json()) == Fate()
