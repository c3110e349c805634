"""A thousand global batches of three sources, through stages, a curve, a ramp and growing sequences: one token stream.

The setup is tests/three_sources.py; the same stream through reader actors: tests/integration/test_thousand_batches.py;
through training: tests/integration/test_elastic.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fmscale.config import Config
from fmscale.corpus import loader
from fmscale.corpus.batch import Batch
from fmscale.corpus.loader import LocalLoader, RankPlan
from fmscale.corpus.mixture import PERIOD
from fmscale.corpus.replay import replay
from fmscale.corpus.rows import read_rows
from fmscale.corpus.sources import open_run_data
from tests.laws import TokenStream, token_stream
from tests.three_sources import publish, three_sources

STEPS = 1000
WORLDS = (1, 2, 3, 4, 5, 7, 8, 16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def replayed(root: Path) -> Callable[..., list[str]]:
    """Batch hashes of the first `steps` steps, from the corpora alone."""

    @cache
    def hashes(packing: str, attention: str, steps: int = STEPS) -> list[str]:
        config = three_sources(root, packing=packing, attention=attention)
        return [record["batch_hash"] for record in replay(config, 1, steps, dp=1)]

    return hashes


def simulated(config: Config, steps: int) -> TokenStream:
    """What the ranks of `config` are handed in the first steps, without loaders in between."""
    data = open_run_data(config)

    def shares(rank: int) -> Iterator[Batch]:
        plan = RankPlan(config, data, rank)
        for ask in plan.train(0):
            yield plan.batch(ask, read_rows(plan.corpora["train"], ask.places, plan.row_tokens, plan.documents))

    ranks = zip(*map(shares, range(config.parallel.dp)), strict=True)
    return token_stream(map(data.order.steps.step, range(1, steps + 1)), islice(ranks, steps))


def test_the_run_has_all_that_can_change(root: Path) -> None:
    """Epochs roll over, stages and curves change weights, batches and sequences grow: else the rest shows little."""
    order = open_run_data(three_sources(root)).order
    assert {what for what, _, _ in order.steps.describe()} == {"global batch", "sequence length"}
    assert len(order.steps.describe()) == 4
    assert len(order.stages) > 60
    assert min(order.epochs(order.steps.rows_after(STEPS))) > 4
    assert [min(weights) for _, weights in (order.stages[0], order.stages[-1])] == [0, 0]


@pytest.mark.parametrize(
    ("packing", "attention", "steps", "worlds"),
    [
        ("concat", "causal", STEPS, WORLDS),
        ("best_fit", "document", STEPS, (1, 3)),
        ("best_fit", "causal", 250, (1, 8)),
        ("concat", "document", 250, (2, 7)),
        pytest.param("best_fit", "document", STEPS, WORLDS, marks=pytest.mark.slow),
        pytest.param("best_fit", "causal", STEPS, WORLDS, marks=pytest.mark.slow),
        pytest.param("concat", "document", STEPS, WORLDS, marks=pytest.mark.slow),
    ],
)
def test_one_token_stream_for_any_number_of_ranks(
    root: Path,
    replayed: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    packing: str,
    attention: str,
    steps: int,
    worlds: Sequence[int],
) -> None:
    monkeypatch.setattr(loader, "LOCATE_STEPS", 250)  # of no effect on batches, and quicker for 1,000 of them
    streams = set()
    for dp in worlds:
        config = three_sources(root, packing=packing, attention=attention, dp=dp, micro_batch=1 + dp % 3)
        stream = simulated(config, steps)
        assert stream.hashes == replayed(packing, attention, steps), f"{dp} ranks, other batches"
        streams.add(stream.sha256)
    assert len(streams) == 1
    assert len(set(stream.hashes)) == steps, "batches do not differ: nothing is tested"


def test_the_four_ways_to_make_rows_are_four_streams(replayed: Callable[..., list[str]]) -> None:
    ways = [(packing, attention) for packing in ("concat", "best_fit") for attention in ("causal", "document")]
    assert len({replayed(*way, 250)[0] for way in ways}) == 4


@pytest.mark.parametrize(("packing", "attention"), [("concat", "causal"), ("best_fit", "document")])
def test_shares_are_within_a_row_of_the_closed_form_at_every_batch(root: Path, packing: str, attention: str) -> None:
    order = open_run_data(three_sources(root, packing=packing, attention=attention)).order
    ((origin, mixture),) = order.mixtures(order.steps.rows_after(STEPS))
    assert (origin, mixture.deviation_bound) == (0, 1.0)
    assert all(order.steps.edge(stage.start) == stage.start for stage in mixture.stages), "a stage inside a batch"
    source = order.locate(np.arange(order.steps.rows_after(STEPS))).source
    counted = np.cumsum(source[:, None] == np.arange(3), axis=0)
    ideal, stages, weights = [Fraction(0)] * 3, list(mixture.stages), (0, 0, 0)
    furthest = Fraction(0)
    for number in range(1, STEPS + 1):
        step = order.steps.step(number)
        if stages and stages[0].start == step.first_row:
            weights = stages.pop(0).weights
        ideal = [units + Fraction(step.rows * weight, PERIOD) for units, weight in zip(ideal, weights, strict=True)]
        end = step.first_row + step.rows
        assert mixture.ideal(end) == ideal, f"step {number}: the closed form is not the sum over the batches"
        assert order.shares(end).tolist() == counted[end - 1].tolist(), f"step {number}: counted otherwise"
        furthest = max(furthest, *(abs(int(n) - units) for n, units in zip(counted[end - 1], ideal, strict=True)))
    assert not stages
    assert 0 < furthest <= 1


def test_counters_of_sources_are_what_the_rows_say(root: Path) -> None:
    """The two formulas behind `source_tokens` and `source_epochs` of metrics.jsonl."""
    order = open_run_data(three_sources(root)).order
    at = order.locate(np.arange(order.steps.rows_after(STEPS)))
    for number in range(1, STEPS + 1, 7):
        rows = order.steps.rows_after(number)
        epochs, shares = order.epochs(rows), order.shares(rows)
        for s in range(3):
            own = at.epoch[:rows][at.source[:rows] == s]
            finished = int(own[-1]) if len(own) else 0
            assert shares[s] == len(own)
            assert epochs[s] == len(own) / order.rows_per_epoch(s)
            in_last = int(np.count_nonzero(own == finished))
            assert round(epochs[s] * order.rows_per_epoch(s)) == finished * order.rows_per_epoch(s) + in_last


def test_20_interruptions_lose_no_row_and_repeat_none(root: Path) -> None:
    """Loaders are left at random rows with batches under way, and others go on: more or fewer ranks, other
    micro-batches, read further ahead, and, as after a crash, from some steps before."""
    rng, last = random.Random(20), 300
    config = three_sources(root, steps=last)
    steps = open_run_data(config).order.steps
    shares: dict[int, list[Batch]] = {}
    position, ways = 0, set()
    for stop in [*sorted(rng.sample(range(5, last), 20)), last]:
        dp, micro, ahead = rng.choice(WORLDS[:-2]), rng.randint(1, 4), rng.randint(1, 6)
        ways.add((dp, micro, ahead))
        changed = three_sources(root, steps=last, dp=dp, micro_batch=micro, prefetch_batches=ahead)
        ranks = [LocalLoader(changed, open_run_data(changed), rank) for rank in range(dp)]
        batches = [rank.batches(steps.rows_after(position)) for rank in ranks]
        for number in range(position + 1, stop + 1):
            shares[number] = [next(own) for own in batches]
        for rank in ranks:
            rank.close()
        position = stop if stop == last else max(0, stop - rng.randint(0, 7))
    assert len(ways) > 15
    stream = token_stream(map(steps.step, range(1, last + 1)), (shares[n] for n in range(1, last + 1)))
    assert stream.hashes == [record["batch_hash"] for record in replay(config, 1, last, dp=1)]
