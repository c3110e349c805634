"""When a run that waits for data says so: from which share on, how often, and which part of the way it blames."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmscale.corpus.rows import Spent
from fmscale.observe.stalls import LIMIT, MORE, REMEDIES, SETTLED, WINDOW, StallWatch

PARTS = tuple(Spent().named(""))


def watch(waits: list[float], part: str = "queue_s", step_time_s: float = 1.0) -> list[tuple[int, str]]:
    """(step, words) of the warnings of a run whose steps, all of one length, wait this long for one part."""
    stalls, told = StallWatch("ray"), []
    for step, wait in enumerate(waits, 1):
        warning = stalls.step(step_time_s, wait, Spent(**{part: wait}))
        if warning is not None:
            told.append((step, warning))
    return told


def test_each_part_has_a_remedy() -> None:
    assert set(REMEDIES) == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_warning_names_share_part_and_remedy(part: str) -> None:
    ((step, words),) = watch([0.04] * 200, part, step_time_s=0.5)
    assert step == SETTLED + WINDOW
    assert words == (
        f"the last {WINDOW} steps waited 8.0 % of their time for data, 100 % of it for `{part[:-2]}`: "
        + REMEDIES[part].format(more=MORE["ray"])
    )


@pytest.mark.parametrize("part", PARTS)
def test_a_rank_that_reads_by_itself_is_not_sent_to_readers(part: str) -> None:
    """Nor is any rank to settings that change what it computes."""
    stalls = StallWatch("torchrun")
    words = str([stalls.step(1.0, 0.1, Spent(**{part: 0.1})) for _ in range(SETTLED + WINDOW)][-1])
    if part != "transfer_s":  # there is no shared memory to copy from
        assert "readers_per_node" not in words
    assert "threads_per_rank" not in words


def test_the_largest_part_is_blamed_with_its_share() -> None:
    stalls = StallWatch("ray")
    warnings = [stalls.step(1.0, 0.1, Spent(read_s=0.03, verify_s=0.06, collate_s=0.01)) for _ in range(55)]
    assert warnings[:-1] == [None] * 54
    assert "10.0 % of their time for data, 60 % of it for `verify`: hashing chunks" in str(warnings[-1])


@given(st.lists(st.floats(0, LIMIT), max_size=200), st.sampled_from(PARTS))
def test_a_healthy_run_hears_nothing(waits: list[float], part: str) -> None:
    assert watch(waits, part) == []


@given(st.lists(st.floats(0, 1), max_size=SETTLED + WINDOW - 1))
def test_a_start_says_nothing(waits: list[float]) -> None:
    """Its first steps nobody could read ahead of, and few steps are no share."""
    assert watch([3600.0] * SETTLED) == []
    assert watch(waits) == []
    assert watch([3600.0] * SETTLED + [0.0] * 200) == []


def test_it_is_said_again_only_when_twice_as_bad() -> None:
    told = watch([0.02] * 300 + [0.03] * 300 + [0.05] * 300 + [0.5] * 100 + [0.0] * 200 + [0.4] * 200)
    assert told[0][0] == SETTLED + WINDOW
    shares = [float(words.split(" waited ")[1].split(" %")[0]) for _, words in told]
    assert shares[0] == 2.0
    assert all(later >= 2 * earlier - 0.1 for earlier, later in pairwise(shares))
    assert len(told) <= 6, "a run that waits more and more is told as often as its wait doubles"
    assert not [step for step, _ in told if step > 1000], "as bad as before is no news"


def test_another_part_is_news() -> None:
    stalls, told = StallWatch("ray"), []
    for step in range(300):
        part = "queue_s" if step < 150 else "read_s"
        warning = stalls.step(1.0, 0.02, Spent(**{part: 0.02}))
        told += [warning] if warning else []
    assert ["`queue`" in words for words in told] == [True, False]
    assert "`read`" in told[1]
