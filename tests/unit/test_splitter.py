"""Words: what the table says, what no text may break, and that no batch, run of marks or length makes a difference."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.columns import Columns
from data_pipeline.fixed_words import LONGEST, splits


def words_of(*texts: str) -> list[list[str]]:
    columns = Columns(texts)
    words = columns.words
    codes = columns.codes
    found: list[list[str]] = [[] for _ in texts]
    for document, start, stop in zip(words.document.tolist(), words.start.tolist(), words.stop.tolist(), strict=True):
        found[document].append("".join(map(chr, codes[start:stop])))
    return found


# Left to right: the text, its words with spaces between. The right side is what spaCy 3.8's English tokenizer says
# (benchmarks/data_rules.py asks it).
TABLE = r"""
A plain sentence.              | A plain sentence .
"Quoted," she said (twice).    | " Quoted , " she said ( twice ) .
don't can't won't shan't       | do n't ca n't wo n't sha n't
DON'T                          | DON'T
I'm you're he's they'd we've   | I 'm you 're he 's they 'd we 've
shouldn't've I’ve              | should n't 've I ’ve
John's dogs' boss’s            | John 's dogs ' boss ’s
'tis 'em 'cause rock'n'roll    | ' tis 'em 'cause rock'n'roll
cannot gonna id dont           | can not gon na i d do nt
its well shell                 | its well shell
e.g. i.e. Mr. Dr. Inc. U.S.    | e.g. i.e. Mr. Dr. Inc. U.S.
(e.g. this) (etc.)             | ( e.g. this ) ( etc . )
end. End.). USA. x.            | end . End . ) . USA . x.
well-known 3-d a-b-c           | well - known 3 - d a - b - c
a--b a---b 1--2                | a -- b a --- b 1 - -2
-5 +5 +x 5+ 2*3 2^10           | -5 +5 + x 5 + 2 * 3 2 ^ 10
10km 5KB 100km/h 50% 3in       | 10 km 5 KB 100 km/h 50 % 3 in
9am 12p.m. 13am                | 9 am 12 p.m. 13am
$5 5$ US$5 5US$ €3.50 C$2      | $ 5 5 $ US$ 5 5 US$ € 3.50 C$ 2
1,000,000.00 3.14 1/2 10:30    | 1,000,000.00 3.14 1/2 10:30
a,b a, b 1,b                   | a , b a , b 1,b
and/or w/o he/she 1/x          | and/or w/o he / she 1 / x
end.Start end.start            | end . Start end.start
Wait...what ... .. what...     | Wait ... what ... .. what ...
one…two … end……                | one … two … end ……
http://example.com/a-b?c=d     | http://example.com/a-b?c=d
see https://x.org.             | see https://x.org .
(www.example.com/x,y)          | ( www.example.com/x,y )
a.b@mail-host.org, notes.txt   | a.b@mail-host.org , notes.txt
ftp://u:p@host.net:21/x-y      | ftp://u:p@host.net:21/x-y
href="http://a.com/b-c">       | href="http://a.com / b - c " >
lib/core.c lib/notes.txt       | lib / core.c lib / notes.txt
C:\dir\file a\b                | C:\dir\file a\b
#tag @user snake_case __init__ | # tag @user snake_case _ _ init _ _
f(x) x[0] {y} a<b x=y          | f(x ) x[0 ] { y } a < b x = y
def f(self): x[:-1]            | def f(self ): x[:-1 ]
<b>bold</b> a&b                | < b > bold</b > a&b
:) :-( ;-) =D 8) <3 ^_^        | :) :-( ;-) =D 8) <3 ^_^
hi:) (:) x:D                   | hi :) ( :) x :D
==== ---- **** ''''            | = = = = ---- * * * * ' '' '
«guillemets» „quotes“ ‘x’      | « guillemets » „ quotes “ ‘ x ’
5°C 90°F. ½ x²                 | 5 ° C 90 ° F . ½ x²
C++ C# .NET Node.js            | C++ C # .NET Node.js
don't-care (cannot)            | don't - care ( can not )
☺smile a☺b ©2020               | ☺ smile a ☺ b © 2020
naïve café—bar – x             | naïve café — bar – x
中文，没有空格。                | 中文，没有空格 。
Привет, мир! Δx-y              | Привет , мир ! Δx - y
'it' ('s) "'s"                 | ' it ' ( 's ) " 's "
a/b/c AT&T R&D                 | a / b / c AT&T R&D
x... y.. z.                    | x ... y .. z.
~/path ~x a~b                  | ~/path ~x a ~ b
%d 100%. $HOME                 | % d 100 % . $ HOME
Jan. 5, 1999; Sept. 3          | Jan. 5 , 1999 ; Sept. 3
y'all ma'am o'clock            | y' all ma'am o'clock
doin' goin lovin'              | doin' goin lovin'
(1) [2] 3) iv.                 | ( 1 ) [ 2 ] 3 ) iv .
!!! ?! ?!?                     | ! ! ! ? ! ? ! ?
"'Nested' quotes"              | " ' Nested ' quotes "
a.m. p.m 5 a.m.                | a.m. p.m 5 a.m.
1990s '90s 90's                | 1990s ' 90s 90 's
T-shirt X-ray e-mail           | T - shirt X - ray e - mail
tab	and  two   spaces          | tab and two spaces
"""


@pytest.mark.parametrize("line", TABLE.strip().splitlines())
def test_the_table(line: str) -> None:
    text, _, expected = line.rpartition("|")
    text = text.rstrip()
    assert words_of(text) == [expected.split()]


PARTS = [
    *"aBé1中П.,:;-'\"’()[]{}<>=/+*^%$#&@_~|…–☺° \n\t",
    "..",
    "--",
    "'s",
    "n't",
    "km",
    "US$",
    "://",
    "www.",
    ".com",
    "e.g.",
    ":)",
    "''",
]
texts = st.lists(st.sampled_from(PARTS), max_size=40).map("".join) | st.text(max_size=30)


@given(texts)
def test_words_are_the_text_without_its_white_space(text: str) -> None:
    words = words_of(text)[0]
    assert "".join(words) == "".join(text.split())
    assert all(words)
    pieces = text.split()
    for word in words:  # and none goes beyond what stands between two white spaces
        assert any(word in piece for piece in pieces)


@given(st.lists(texts, max_size=8))
def test_a_batch_of_many_has_the_words_of_batches_of_one(many: list[str]) -> None:
    assert words_of(*many) == [words_of(text)[0] for text in many]


@given(texts, texts)
def test_words_do_not_hang_on_what_stands_behind_white_space(one: str, other: str) -> None:
    assert words_of(f"{one}\n{other}")[0] == words_of(one)[0] + words_of(other)[0]


@pytest.mark.parametrize("text", ["=", "'", "(", "-", ".", "'s", "1km", ")a(", "☺", ":)", "a-", "(.", "…'"])
def test_a_hundred_thousand_of_it_take_a_second(text: str) -> None:
    start = time.process_time()
    words = words_of(text * 100_000)[0]
    assert time.process_time() - start < 5
    assert "".join(words) == text * 100_000


def test_runs_of_marks_are_cut_as_short_ones_are() -> None:
    for mark in "=*_#(":
        assert words_of(mark * 500)[0] == [mark] * 500
    assert words_of("(" * 100 + "word" + ")" * 70 + "." * 9)[0] == ["("] * 100 + ["word"] + [")"] * 70 + ["." * 9]


def test_each_fixed_string_is_split_as_it_says() -> None:
    found = splits()
    assert max(map(len, found)) == LONGEST
    assert len(found) > 1300
    assert words_of(*found) == [list(parts) for parts in found.values()]
