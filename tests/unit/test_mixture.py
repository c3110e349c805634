"""Shares of sources: within a row of their ideal at every row, through all stages; counts and places agree."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.corpus.mixture import MAX_ROWS, PERIOD, Mixture, Stage, leaves_of, quantise
from fmscale.errors import ConfigError

weight_lists = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=9)


@given(weight_lists)
@settings(max_examples=60)
def test_weights_become_integers_within_one_of_the_exact_share(weights: list[float]) -> None:
    try:
        whole = quantise(weights, [str(i) for i in range(len(weights))])
    except ConfigError:
        assert min(weights) / sum(weights) < 1.001 / PERIOD
        return
    assert sum(whole) == PERIOD
    assert all(abs(w - weight / sum(weights) * PERIOD) < 1 for w, weight in zip(whole, weights, strict=True))
    assert quantise([weight * 8 for weight in weights], [""] * len(weights)) == whole


def test_a_weight_too_small_for_one_row_in_a_period_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weight of source `tiny` is too small(.*\n)*  expected: at least 1/65536"):
        quantise([1.0, 1e-6], ["web", "tiny"])
    assert quantise([1.0, 0.0], ["web", "none"]) == (PERIOD, 0)


@st.composite
def mixtures(draw: st.DrawFn, most_sources: int = 6) -> Mixture:
    """Up to five stages; weights equal, wild, or none."""
    sources = draw(st.integers(1, most_sources))
    starts = [0, *sorted(draw(st.sets(st.integers(1, 1500), max_size=4)))]
    weight = st.one_of(st.just(0), st.just(1), st.integers(1, 30), st.sampled_from([100, 1000]))
    stages = []
    for start in starts:
        weights = draw(st.lists(weight, min_size=sources, max_size=sources).filter(any))
        stages.append(Stage(start, quantise(weights, [""] * sources)))
    return Mixture(tuple(stages))


def units_by_the_definition(mixture: Mixture, sources: list[int], rows: int) -> int:
    """The ideal of a set of sources after `rows` rows, in 1 / PERIOD rows: summed from row 0, in Python's integers."""
    ends = [*(stage.start for stage in mixture.stages[1:]), rows]
    spans = [max(0, min(end, rows) - stage.start) for stage, end in zip(mixture.stages, ends, strict=True)]
    weights = [sum(stage.weights[s] for s in sources) for stage in mixture.stages]
    return sum(span * weight for span, weight in zip(spans, weights, strict=True))


@given(mixtures(most_sources=12), st.integers(1, MAX_ROWS // 1500), st.lists(st.integers(0, MAX_ROWS), max_size=5))
@settings(max_examples=60, deadline=None)
def test_what_is_summed_up_once_is_what_the_definition_sums_from_row_0(
    near: Mixture, apart: int, rows: list[int]
) -> None:
    mixture = Mixture(tuple(Stage(start * apart, weights) for start, weights in near.stages))
    for n in [*rows, *(stage.start for stage in mixture.stages)]:
        ideals = [Fraction(units_by_the_definition(mixture, [s], n), PERIOD) for s in range(mixture.sources)]
        assert mixture.ideal(n) == ideals
    bound, todo = 0.0, [(mixture._tree, 0.0)]
    while todo:
        node, deviation = todo.pop()
        bound = max(bound, deviation)
        if isinstance(node, int):
            continue
        below, first, line = leaves_of(node), leaves_of(node[0]), mixture._lines[node]
        weights = [(sum(w[s] for s in below), sum(w[s] for s in first)) for _, w in mixture.stages]
        held = [(start, *each) for (start, _), each in zip(mixture.stages, weights, strict=True) if each[0]]
        if held:
            assert line.start.tolist() == [units_by_the_definition(mixture, below, start) for start, _, _ in held]
            assert line.first.tolist() == [units_by_the_definition(mixture, first, start) for start, _, _ in held]
            assert line.node_weight.tolist() == [weight for _, weight, _ in held]
            assert line.first_weight.tolist() == [weight for _, _, weight in held]
        for child in node:
            of_child = [sum(w[s] for s in leaves_of(child)) for _, w in mixture.stages]
            shares = [part / whole for part, (whole, _) in zip(of_child, weights, strict=True) if whole]
            todo.append((child, 0.5 + max(shares, default=0.0) * deviation))
    assert mixture.deviation_bound == bound


def quantised_by_the_definition(weights: list[float]) -> tuple[int, ...]:
    exact = [Fraction(weight) for weight in weights]
    share = [weight * PERIOD / sum(exact) for weight in exact]
    whole = [int(weight) for weight in share]
    for s in sorted(range(len(share)), key=lambda s: whole[s] - share[s])[: PERIOD - sum(whole)]:
        whole[s] += 1
    return tuple(whole)


@given(st.lists(st.one_of(st.integers(1, 10), st.sampled_from([0.1, 0.5, 1 / 3, 1e15]), st.floats(0.1, 9)), min_size=1))
@settings(max_examples=100)
def test_weights_in_whole_numbers_are_those_in_fractions(weights: list[float]) -> None:
    if 1e15 in weights:
        weights = [1e15 if weight == 1e15 else 0 for weight in weights]
    assert quantise(weights, [""] * len(weights)) == quantised_by_the_definition(weights)


@pytest.mark.parametrize(("sources", "curves"), [(8, 64), (20, 20), (64, 10)])
def test_many_stages_of_many_sources_begin_in_a_moment(sources: int, curves: int) -> None:
    rng = np.random.default_rng(sources)
    weights = rng.integers(1, 9, (64 * curves, sources)).tolist()
    begun = time.process_time()
    mixture = Mixture(tuple(Stage(i * 10**9, quantise(w, [""] * sources)) for i, w in enumerate(weights)))
    assert mixture.counts(10**12).sum() == 10**12
    assert 1 <= mixture.deviation_bound < 3
    assert time.process_time() - begun < 2


def deviations(mixture: Mixture, rows: int) -> list[Fraction]:
    counts = mixture.counts(np.arange(rows))
    return [
        abs(count - ideal)
        for n in range(rows)
        for count, ideal in zip(counts[n].tolist(), mixture.ideal(n), strict=True)
    ]


@given(mixtures())
@settings(max_examples=40, deadline=None)
def test_counts_places_and_ideals_agree(mixture: Mixture) -> None:
    rows = np.arange(2000)
    source, number = mixture.locate(rows)
    counts = mixture.counts(np.arange(2001))
    for s in range(mixture.sources):
        assert (counts[1:, s] == np.cumsum(source == s)).all()
        own = number[source == s]
        assert (own == np.arange(len(own))).all()
        assert (mixture.row_of(s, own) == rows[source == s]).all()
    assert (counts.sum(1) == np.arange(2001)).all()


@given(mixtures(most_sources=4))
@settings(max_examples=25, deadline=None)
def test_up_to_four_sources_are_within_one_row_of_their_share_at_every_row(mixture: Mixture) -> None:
    assert mixture.deviation_bound <= 1
    assert max(deviations(mixture, 1700)) <= mixture.deviation_bound + 1e-9


@given(mixtures(most_sources=9))
@settings(max_examples=15, deadline=None)
def test_of_more_sources_none_is_further_from_its_share_than_the_bound(mixture: Mixture) -> None:
    assert max(deviations(mixture, 1000)) <= mixture.deviation_bound + 1e-9


@pytest.mark.parametrize(
    "weights", [[1] * 20, [1] * 31, [20, *[1] * 20], [3, 1, 1, 1, 1, 1], [2**-i for i in range(12)]]
)
def test_customary_mixtures_of_many_sources_are_within_one_row_as_well(weights: list[float]) -> None:
    mixture = Mixture((Stage(0, quantise(weights, [""] * len(weights))),))
    rows = np.arange(PERIOD + 1)
    ideal = rows[:, None] * np.array(mixture.stages[0].weights) / PERIOD
    assert np.abs(mixture.counts(rows) - ideal).max() <= 1


@given(mixtures(most_sources=2))
@settings(max_examples=20, deadline=None)
def test_of_two_sources_one_without_weight_gives_no_row(mixture: Mixture) -> None:
    source, _ = mixture.locate(np.arange(2000))
    ends = [stage.start for stage in mixture.stages[1:]] + [2000]
    for stage, end in zip(mixture.stages, ends, strict=True):
        given_rows = set(source[stage.start : end].tolist())
        assert given_rows <= {s for s, weight in enumerate(stage.weights) if weight}


def test_a_source_that_joins_two_others_later_gives_no_row_before() -> None:
    mixture = Mixture((Stage(0, quantise([7, 0, 3], "abc")), Stage(1001, quantise([4, 3, 3], "abc"))))
    source, _ = mixture.locate(np.arange(3000))
    assert 1 not in source[:1001]
    assert (source[1001:] == 1).mean() == pytest.approx(0.3, abs=0.001)


def test_the_last_rows_cost_and_keep_what_the_first_do() -> None:
    mixture = Mixture(tuple(Stage(i * 10**11, quantise([6 + i, 3, 1], "abc")) for i in range(65)))
    mixture.locate(np.array([0]))

    def cost(first: int) -> float:
        rows, times = np.arange(first, first + 8), []
        for _ in range(20):
            started = time.perf_counter()
            mixture.locate(rows)
            times.append(time.perf_counter() - started)
        return min(times)

    assert cost(MAX_ROWS - 10) < 5 * cost(0) + 0.001
    last = MAX_ROWS - 2
    assert (
        max(abs(count - ideal) for count, ideal in zip(mixture.counts(last).tolist(), mixture.ideal(last), strict=True))
        <= 1
    )
    with pytest.raises(AssertionError, match="beyond what can be counted"):
        mixture.locate(np.array([MAX_ROWS]))


def test_a_stage_that_no_row_can_reach_is_none() -> None:
    """Behind MAX_ROWS integers overflow: settings and edits are refused before they come here."""
    Mixture((Stage(0, (PERIOD,)), Stage(MAX_ROWS, (PERIOD,))))
    with pytest.raises(AssertionError, match="beyond what can be counted"):
        Mixture((Stage(0, (PERIOD,)), Stage(MAX_ROWS + 1, (PERIOD,))))


def test_a_row_that_never_comes_is_nowhere() -> None:
    mixture = Mixture((Stage(0, (PERIOD // 2, PERIOD // 2)), Stage(10, (PERIOD, 0))))
    assert mixture.row_of(1, np.array([4, 5])).tolist()[1] == MAX_ROWS
