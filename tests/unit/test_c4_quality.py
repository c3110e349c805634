"""C4's rules: lines and documents go and stay as plain Python says, in any batch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.columns import Columns
from data_pipeline.document import Document
from data_pipeline.sentences import sentences
from data_pipeline.steps import c4_quality as module
from data_pipeline.steps.c4_quality import c4_quality
from tests import rule_oracles

PARTS = [
    "The cat sat here. ", "It was late! ", "Was it?", "no end", "word", " ", "  ", "\n", "\n", "\r\n", "\u2028", "\x0b",
    "[12]", "[]", "[edit]", "[citation needed]", "[1a]", "e.g. this", "so...", 'he said."', "Javascript is on.",
    "lorem Ipsum dolor.", "f{x}.", "Our Privacy Policy.", "we use cookies.", "x" * 12, "it's 5.", "é.", "',",
]  # fmt: skip
texts = st.lists(st.sampled_from(PARTS), max_size=25).map("".join)


def run(many: list[str], **parameters: Any) -> list[Document]:
    return list(c4_quality([Document(str(place), text) for place, text in enumerate(many)], **parameters))


def words_of(line: str) -> list[str]:
    columns = Columns([line])
    return [line[a:b] for a, b in zip(columns.words.start.tolist(), columns.words.stop.tolist(), strict=True)]


@settings(max_examples=60)
@given(
    st.lists(texts, max_size=4), st.booleans(), st.integers(-1, 3), st.integers(0, 4), st.sampled_from([-1, 8, 11, 12])
)
def test_lines_and_documents_as_plain_python_has_them(
    many: list[str], remove_citations: bool, fewest_sentences: int, fewest_words: int, longest: int
) -> None:
    limits: dict[str, Any] = {"min_num_sentences": fewest_sentences, "min_words_per_line": fewest_words}
    limits |= {"max_word_length": longest, "remove_citations": remove_citations}
    found = run(many, **limits)
    assert [document.id for document in found] == [str(place) for place in range(len(many))]
    for text, document in zip(many, found, strict=True):
        kept, gone, reason = rule_oracles.c4_lines(
            text,
            remove_citations=remove_citations,
            min_words=fewest_words,
            longest=longest if longest >= 0 else 10**9,
        )
        number = sum(rule_oracles.sentences(words_of(line)) for line in kept)
        if reason:
            assert (document.dropped, document.text) == (f"c4_quality/{reason}", text)
        elif number < fewest_sentences:
            assert (document.dropped, document.found) == ("c4_quality/too_few_sentences", number)
        else:
            assert not document.dropped
            assert document.text == "\n".join(kept).strip()
            assert document.tally == {f"c4_quality/{name}": count for name, count in gone.items()}
        assert run([text], **limits)[0] == Document("0", document.text, **_verdict(document))


def _verdict(document: Document) -> dict[str, Any]:
    return {"dropped": document.dropped, "found": document.found, "tally": document.tally}


FIVE = "One is here. Two is here. Three is here. Four is here. Five is here."


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        (FIVE, {}, FIVE),
        (FIVE.replace("Five is here.", "Five is e.g. here"), {}, "no_terminal_punct"),
        (FIVE.removesuffix(" Five is here."), {}, "c4_quality/too_few_sentences"),
        (f"{FIVE}\nMenu\nTwo words.\nThree good words.", {}, f"{FIVE}\nThree good words."),
        (f"{FIVE}\nIt goes on and on...", {}, FIVE),
        (f"{FIVE}\nIt goes on and on...", {"filter_no_terminal_punct": False}, f"{FIVE}\nIt goes on and on..."),
        (f"{FIVE}\nEnable JavaScript for this.", {}, FIVE),
        (f"{FIVE}\nEnable JavaScript for this.", {"filter_javascript": False}, f"{FIVE}\nEnable JavaScript for this."),
        (f"{FIVE}\nSee our Terms of Use.", {}, FIVE),
        (f"{FIVE}\nSee our Terms of Use.", {"filter_policy": False}, f"{FIVE}\nSee our Terms of Use."),
        (f"{FIVE}\nLorem ipsum dolor sit.", {}, "c4_quality/lorem_ipsum"),
        (f"{FIVE}\nLorem ipsum dolor sit.", {"filter_lorem_ipsum": False}, f"{FIVE}\nLorem ipsum dolor sit."),
        (f"{FIVE}\nif (x) {{ return y.", {}, "c4_quality/curly_bracket"),
        (f"{FIVE}\nif (x) {{", {}, FIVE),  # looked for only in lines that would stay
        (f"{FIVE}\nif (x) {{ return y.", {"filter_curly_bracket": False}, f"{FIVE}\nif (x) {{ return y."),
        (f"{FIVE}\n{'x' * 1001} is a word.", {}, FIVE),
        (f"{FIVE}\n{'x' * 1001} is a word.", {"max_word_length": -1}, f"{FIVE}\n{'x' * 1001} is a word."),
        (f"{FIVE}\nIt was so.[3][12]", {}, f"{FIVE}\nIt was so."),
        (f"{FIVE}\nIt was so.[3]", {"remove_citations": False}, FIVE),
        (f"{FIVE}\nIt was [citation needed] so.", {}, f"{FIVE}\nIt was  so."),
    ],
)  # fmt: skip
def test_each_limit_of_the_paper(text: str, parameters: dict[str, Any], expected: str) -> None:
    (document,) = run([text], **parameters)
    if expected.startswith("c4_quality/"):
        assert document.dropped == expected
    elif expected == "no_terminal_punct":
        assert document.dropped == "c4_quality/too_few_sentences"
    else:
        assert document.text == expected


def test_a_giant_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    many = ["\n".join([FIVE, "Menu", "A line of some words."] * 9), FIVE, f"{FIVE}\n" * 5 + "a curly { here.\n" + FIVE]
    whole = run(many)
    monkeypatch.setattr(module, "JUDGED_CHARACTERS", 100)
    assert run(many) == whole
    assert whole[0].text.count("A line of some words.") == 9
    assert whole[2].dropped == "c4_quality/curly_bracket"
    long_line = "One is here. " * 40
    assert run([long_line])[0].text.replace("\n", " ").split() == long_line.split()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0), ("word", 1), ("One. Two.", 2), ("One... two", 1), ("Dr. No e.g. this. Yes!", 2), ("Really?! Yes.", 2),
        ('He said "no." Then he left.', 2), ("One.\nTwo", 2), ("One. ) two", 2), ("3.5 is. . . it", 2), ("好。 是", 2),
    ],
)  # fmt: skip
def test_sentences(text: str, number: int) -> None:
    assert sentences(Columns([text])).tolist() == [number]
