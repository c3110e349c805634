"""The line step: which lines go by which rule, against a plain reading of the rules."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.document import Document
from data_pipeline.steps import lines as module
from data_pipeline.steps.lines import lines
from fmscale.errors import ConfigError
from tests.step_laws import assert_alone_as_together, run

LINE = st.sampled_from(
    (
        *("", "  ", "A line of five words.", "MENU HOME ABOUT", "3 likes", "Comments (12)", "1,234.5", "2023-01-15"),
        *(
            "one",
            "Ünder",
            "ÄÖÜ sagt er",
            "no end here",
            "Read more >>",
            "Sign in to comment",
            "日本語の文。",
            "ab 1",
            "(x)",
        ),
    )
)
TEXT = st.lists(LINE, max_size=12).map("\n".join)
ALL: dict[str, Any] = {
    "min_words": 2, "max_words": 6, "max_upper": 0.5, "numbers": True, "counters": True, "unfinished": True,
}  # fmt: skip


def only(text: str, **parameters: Any) -> Document:
    return next(iter(lines([Document("", text)], **parameters)))


@pytest.mark.parametrize(
    ("parameters", "rule", "going", "staying"),
    [
        ({"min_words": 3}, "short", ["one", "one two"], ["one two three", "one  two\tthree four"]),
        ({"max_words": 2}, "long", ["one two three"], ["one two", "one"]),
        ({"max_upper": 0.5}, "upper", ["SHOUTING", "SHOUt", "ÄÖÜä"], ["SHou", "quiet", "12 345", "日本語", "ÄÖäö"]),
        ({"numbers": True}, "number", ["12", "1,234.5 %", "2023-01-15 10:20", "(3)"], ["12a", "--", "日本 12", "a"]),
        ({"counters": True}, "counter", ["3 likes", "Comments (12)", "Shares: 1.2K"], ["3 big dogs", "a 1 b"]),
        ({"unfinished": True}, "unfinished", ["no end", "Menu"], ["An end.", "Why?", "“Yes.”", "日本語。"]),
        (
            {"matching": [r"^Read more", r"\bcookies\b"]},
            "pattern",
            ["Read more", "We use cookies!"],
            ["read more", "x"],
        ),
    ],
)
def test_a_rule_takes_its_lines_and_no_others(
    parameters: dict[str, Any], rule: str, going: list[str], staying: list[str]
) -> None:
    mixed = [line for pair in zip(going, staying, strict=False) for line in pair] + staying
    found = only("\n".join(mixed), **parameters)
    assert found.text == "\n".join(line for line in mixed if line not in going)
    assert dict(found.tally) == {f"lines/{rule}": min(len(going), len(staying))}
    for line in going:
        assert only(line + "\n" + staying[0], **parameters).text == staying[0]


@given(TEXT, st.integers(1, 30))
def test_lines_are_judged_one_by_one(text: str, piece: int) -> None:
    """Whatever pieces the text is cut into, and by the first rule that a line breaks."""
    rules = module._rules(2, 6, 0.5, True, True, True, [])
    reasons = {line: module._first(line.strip(), rules) for line in text.split("\n")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)
        found = only(text, **ALL)
        assert "\n".join(module._pieces(text)) == text
    gone = Counter(f"lines/{reasons[line]}" for line in text.split("\n") if reasons[line])
    kept = "\n".join(line for line in text.split("\n") if not reasons[line])
    if gone and not kept.strip():
        assert found.dropped == "lines/empty"
    else:
        assert (found.dropped, found.text, dict(found.tally)) == ("", kept, gone)


@given(TEXT)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = only(text, **ALL)
    if not once.dropped:
        again = only(once.text, **ALL)
        assert (again.text, dict(again.tally)) == (once.text, {})


@given(st.lists(TEXT, max_size=6))
def test_a_text_is_cleaned_alone_as_among_others(texts: list[str]) -> None:
    assert_alone_as_together(partial(lines, **ALL, max_removed=0.5), texts)


@given(TEXT)
def test_without_parameters_nothing_happens(text: str) -> None:
    assert only(text) == Document("", text)


def test_a_text_that_is_mostly_rubbish_is_dropped() -> None:
    good, bad = "This line has seven words in it.", "MENU HOME ABOUT"
    kept, dropped, empty = run(
        "lines", [f"{good}\n{bad}", f"{good}\n{bad}\n{bad}", bad], max_upper=0.5, max_removed=0.4
    )
    assert (kept.text, dict(kept.tally)) == (good, {"lines/upper": 1})
    assert (dropped.dropped, dropped.found) == ("lines/removed", 6 / 13)
    assert (empty.dropped, empty.found) == ("lines/removed", 1.0)
    assert run("lines", [bad], max_upper=0.5)[0].dropped == "lines/empty"


def test_phrases_come_from_lists_and_have_no_case(tmp_path: Path) -> None:
    (tmp_path / "phrases").write_text("sign in\nlorem ipsum\n")
    text = "Please SIGN IN here\nA line\nLorem  ipsum\nlorem ipsum dolor"
    found = only(text, containing=[str(tmp_path / "phrases")])
    assert (found.text, dict(found.tally)) == ("A line\nLorem  ipsum", {"lines/phrase": 2})


@pytest.mark.parametrize("pattern", ["(", 3])
def test_a_pattern_that_is_none_is_refused(pattern: Any) -> None:
    with pytest.raises(ConfigError, match=r"no regular expression\n.*\n  found: (\(|3): .*\n  do: correct it"):
        list(lines([], matching=[pattern]))
