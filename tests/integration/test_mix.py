"""`fmscale data mix`: what it says is what the order does, row by row; and it is a page that a person can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fmscale.config import Config, SourceConfig, StageConfig, load
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.mix import ReadingPlan, reading_plan, require_epochs, weights_at
from fmscale.corpus.order import Order
from fmscale.corpus.sequence import SourceSpec
from fmscale.corpus.sources import RunData, open_run_data
from fmscale.corpus.stages import stages_of
from fmscale.corpus.steps import StepPlan
from fmscale.errors import ConfigError
from fmscale.observe.flops import flops_per_token
from launcher.mix import save_plot, show, tokens
from launcher.snapshot import enter
from launcher.start import check
from tests.corpora import grow_corpus, make_corpus
from tests.integration.test_edits import fmscale, succeeds
from tests.runs import TINY

MIX = """
run: {name: mixed}
data:
  sources:
    web: {corpus: ROOT/web, weight: 8}
    books: {corpus: ROOT/books, weight: 2}
    code: {corpus: ROOT/code, weight: 0}
  stages:
    - {from_tokens: 2e4, weights: {web: 6, books: 3, code: 1}, curve: linear}
    - {from_tokens: 6e4, weights: {books: 2, code: 8}}
train: {steps: 200, batch_ramp: [{from_tokens: 1e4, global_batch: 12}]}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mix")
    for number, name in enumerate(("web", "books", "code")):
        make_corpus(root / name, chunks=40 + 9 * number, seed=number)
    (root / "tiny.yaml").write_text(TINY)
    (root / "mix.yaml").write_text(MIX.replace("ROOT", str(root)))
    return root


def arguments(root: Path, *more: str) -> list[str]:
    return [str(root / "tiny.yaml"), str(root / "mix.yaml"), f"run.root={root}", *more]


def config_of(root: Path, *more: str) -> Config:
    given = arguments(root, *more)
    return check(load(given[:2], given[2:]))


def counted(order: Order, first_row: int, last_row: int) -> dict[str, int]:
    """Tokens of each source in rows [first, last), row by row."""
    rows = np.bincount(order.locate(np.arange(first_row, last_row)).source, minlength=len(order.sources))
    return {s.name: int(n) * order.row_tokens for s, n in zip(order.sources, rows, strict=True)}


def assert_counted(config: Config, plan: ReadingPlan) -> None:
    order = open_run_data(config).order
    rows = order.steps.rows_after(config.train.steps)
    assert {source.name: source.tokens for source in plan.sources} == counted(order, 0, rows)
    assert plan.tokens == rows * 64
    edges = [stage.first_token // 64 for stage in plan.stages] + [rows]
    for stage, (first, last) in zip(plan.stages, pairwise(edges), strict=True):
        assert stage.tokens == counted(order, first, last)
        assert order.steps.step(stage.first_step).first_row == first
        for weights in (stage.weights, stage.last_weights):
            assert sum(weights.values()) == pytest.approx(1)


def test_the_numbers_are_those_of_counting_every_row(root: Path) -> None:
    plan = reading_plan(config := config_of(root), open_run_data(config))
    assert_counted(config, plan)
    # Stages begin with the first step at or after their tokens: 2e4 and 6e4 in steps of 8, then of 12 rows of 64.
    assert [stage.first_token for stage in plan.stages] == [0, 20224, 60160]
    assert plan.schedule == [("global batch", 21, 12)]
    first, curve, last = plan.stages
    assert first.weights == first.last_weights
    assert first.weights == pytest.approx({"books": 0.2, "code": 0, "web": 0.8}, abs=1e-4)
    assert curve.weights == pytest.approx({"books": 0.3, "code": 0.1, "web": 0.6}, abs=0.02)
    assert curve.last_weights == pytest.approx({"books": 0.2, "code": 0.8, "web": 0}, abs=0.02)
    assert last.weights == pytest.approx({"books": 0.2, "code": 0.8, "web": 0}, abs=1e-4)
    for source, epochs in zip(plan.sources, open_run_data(config).order.epochs(plan.tokens // 64), strict=True):
        assert source.epochs == epochs == pytest.approx(source.tokens / source.epoch_tokens)


def test_edits_of_the_ledger_are_part_of_the_plan(root: Path, tmp_path: Path) -> None:
    place = f"run.root={tmp_path}"
    enter(config := config_of(root, place))
    edits = [["weights", "web=1", "books=1"], ["skip", "3"], ["quarantine", "web", "2"]]
    for step, each in zip((5, 100, 101), edits, strict=True):
        succeeds("order", "edit", str(config.run_dir), *each, "--from-step", str(step))
    plan = reading_plan(config, open_run_data(config))
    assert_counted(config, plan)
    assert [stage.first_step for stage in plan.stages] == [1, 5], "new weights end the stages that were planned"
    assert plan.edits == [("weights", 5), ("skip", 100), ("quarantine", 101)]
    out = succeeds("data", "mix", *arguments(root, place))
    assert all(f"from step {step}: edit, {kind}" in out for kind, step in plan.edits)
    curve = "stages: [{weights: {web: 1}, curve: cosine}, {from_tokens: 1e5, weights: {code: 1}}]"
    (tmp_path / "stages.yaml").write_text(curve)
    succeeds("order", "edit", str(config.run_dir), "stages", str(tmp_path / "stages.yaml"), "--from-step", "6")
    plan = reading_plan(config, open_run_data(config))
    assert_counted(config, plan)
    assert len(plan.stages) > 30  # the ledger has pieces where settings have a curve
    out = succeeds("data", "mix", *arguments(root, place))
    assert f"{len(plan.stages) - 12} stages more, in --json" in out


def test_a_page_of_plain_text_when_nobody_looks(root: Path) -> None:
    out = succeeds("data", "mix", *arguments(root))
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [character for character in out if ord(character) < 32 and character != "\n"]
    assert lines[0] == "148,480 tokens in 200 steps, from 3 sources"
    for words in (
        "a books 31,744 21.38 % 12,544 2.53",
        "34 20,224 a books 29.92 to 20.23 % 10,048",
        "86 60,160 a books 20.00 % 17,664",
        "b code 80.00 % 70,656",
        "100 % |" + "c" * 24 + "b" * 36,
        "from step 21: global batch 12",
    ):
        assert words in "\n".join(" ".join(line.split()) for line in lines)
    axis = next(line for line in lines if line.startswith("    0 +"))
    assert [place - 7 for place, mark in enumerate(axis) if mark == "^"] == [20224 * 60 // 148480, 60160 * 60 // 148480]
    plan = json.loads(succeeds("data", "mix", *arguments(root), "--json"))
    assert [source["tokens"] for source in plan["sources"]] == [31744, 88384, 28352]
    assert not (root / "mixed").exists(), "nothing is written"


def test_a_terminal_has_colours_unless_the_user_wants_none(root: Path) -> None:
    config = config_of(root)
    data = open_run_data(config)
    plan = reading_plan(config, data)
    shown = {}
    for no_color in (False, True):
        out = StringIO()
        show(Console(file=out, force_terminal=True, width=80, no_color=no_color), plan, data.order)
        shown[no_color] = out.getvalue()
    assert "\x1b[36m\u2588" in shown[False]
    assert "\u2588" not in shown[True]
    assert "cccbbb" in shown[True]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999_999, "999,999"), (1.2345e6, "1.234 M"), (4e9, "4 B"), (15e12, "15 T")]
)
def test_tokens_for_people(count: float, text: str) -> None:
    assert tokens(count) == text


def test_a_source_that_would_be_read_too_often(root: Path) -> None:
    limit = "data.sources.books.max_epochs=1.5"
    commands = (["data", "mix"], ["train"], ["train", "--dry-run"])
    refused = [fmscale(*command, *arguments(root, limit)) for command in commands]
    for code, _, err in refused:
        assert code == 2
        assert err.splitlines() == [
            "error: source `books` would be read more often than its max_epochs",
            "  expected: at most 1.5 epochs of 12,544 tokens",
            "  found: 2.53 epochs (31,744 tokens are read) in 200 steps, 12,928 tokens too many",
            "  do: lower train.steps or its weight (of an existing run: `fmscale order edit RUN weights|stages`), or "
            "set data.sources.books.max_epochs or beyond_max_epochs=repeat (`fmscale data mix` shows all)",
        ]
    assert "at most   tokens beyond" in refused[0][1], "the plan is shown all the same"
    assert "1.5          12,928" in refused[0][1]
    assert not (root / "mixed").exists(), "nothing was started"
    repeat = [limit, "data.sources.books.beyond_max_epochs=repeat"]
    note = "source books is read 2.53 times: 12,928 tokens beyond its max_epochs=1.5 are repeats"
    code, _, err = fmscale("data", "mix", *arguments(root, *repeat))
    assert (code, err) == (0, f"note: {note}\n")
    assert f"note      {note}" in succeeds("train", "--dry-run", *arguments(root, *repeat))
    shorter = config_of(root, limit, "train.steps=100")
    assert require_epochs(shorter, reading_plan(shorter, open_run_data(shorter))) == []


def test_max_epochs_holds_for_a_rank_of_the_users_own_torchrun(root: Path, tmp_path: Path) -> None:
    limit = [f"run.root={tmp_path}", "data.sources.books.max_epochs=1.5"]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    command = [sys.executable, "-m", "launcher.cli", "train", *arguments(root, *limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **rank})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "source `books` would be read more often than its max_epochs" in done.stderr
    assert not (tmp_path / "mixed" / "metrics.jsonl").exists()


def test_an_edit_that_max_epochs_forbids_is_not_written(root: Path, tmp_path: Path) -> None:
    settings = [f"run.root={tmp_path}", "data.sources.books.max_epochs=3"]
    enter(config := config_of(root, *settings))
    run, ledger = str(config.run_dir), config.run_dir / FILE_NAME
    before = ledger.read_bytes()
    for more in ([], ["--dry-run"]):
        code, _, err = fmscale("order", "edit", run, "weights", "books=1", *more)
        assert code == 2
        assert "source `books` would be read more often than its max_epochs" in err
        assert "`fmscale order edit RUN weights|stages`" in err
        assert ledger.read_bytes() == before
    succeeds("order", "edit", run, "weights", "web=1")
    succeeds("train", "--dry-run", *arguments(root, *settings))


def repeats(order: Order, source: int, rows: int, epochs: int) -> int:
    """How many of the rows below `rows` read a place of the source that `epochs` rows before have read."""
    at = order.locate(np.arange(rows))
    own = at.source == source
    seen: Counter[tuple[int, int]] = Counter(zip(at.chunk[own].tolist(), at.start[own].tolist(), strict=True))
    return sum(count - epochs for count in seen.values() if count > epochs)


@pytest.mark.parametrize("kind", ["skip", "generation"])
def test_epochs_count_what_edits_leave_out(root: Path, tmp_path: Path, kind: str) -> None:
    """A skip or a new generation makes repeats come earlier than tokens say; max_epochs sees them."""
    make_corpus(tmp_path / "books", chunks=10)
    more = [f"run.root={tmp_path}", f"data.sources.books.corpus={tmp_path / 'books'}", "data.window_chunks=2"]
    more += ["data.stages=[{from_tokens: 1e9, weights: {web: 1, code: 1}}]", "data.sources.books.max_epochs=1"]
    more += ["data.sources.web.weight=0", "data.sources.code.weight=0", "train.batch_ramp=[]"]
    config = config_of(root, *more, "train.steps=3")
    order = open_run_data(config).order
    books = [source.name for source in order.sources].index("books")
    epoch, batch = order.rows_per_epoch(books), config.train.global_batch
    enter(config)
    if kind == "generation":
        grow_corpus(tmp_path / "books", chunks=10)
    what = "3" if kind == "skip" else "books"
    succeeds("order", "edit", str(config.run_dir), kind, what, "--from-step", "4")
    longer = config_of(root, *more, f"train.steps={epoch // batch}")
    data = open_run_data(longer)
    plan = reading_plan(longer, data)
    source = plan.sources[books]
    assert source.tokens <= epoch * order.row_tokens, "by tokens it would be one epoch"
    assert repeats(data.order, books, epoch // batch * batch, 1) > 0
    assert source.tokens_beyond > 0
    with pytest.raises(ConfigError, match=rf"at most 1 epochs(?s:.*)\({source.tokens:,} tokens are read\)"):
        require_epochs(longer, plan)


def test_a_dry_run_begins_with_the_first_batch_and_counts_each_length(root: Path) -> None:
    schedules = ["data.seq_len_schedule=[{seq_len: 16}, {from_tokens: 4096, seq_len: 64}]"]
    schedules += ["train.batch_ramp=[{global_batch: 4}, {from_tokens: 1e4, global_batch: 12}]", "train.steps=60"]
    config = config_of(root, *schedules)
    out = succeeds("train", "--dry-run", *arguments(root, *schedules))
    assert "batch     4 rows x 64 tokens in sequences of 16, 2 rows a forward" in out
    assert "from step 17: sequence length 64" in out
    assert "sequence length 16" not in out
    rows = open_run_data(config).order.steps.rows_after(60)
    short, long = 4096 * flops_per_token(config.model, 16), (rows * 64 - 4096) * flops_per_token(config.model, 64)
    assert f"work      {rows * 64:,} tokens, {short + long:.3g} FLOPs" in out
    assert "4,096 tokens x 6 N + 12 L W T" in out


def test_the_plot_as_a_picture(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ending, begins in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        succeeds("data", "mix", *arguments(root), "--plot", str(tmp_path / f"mix{ending}"))
        assert (tmp_path / f"mix{ending}").read_bytes().startswith(begins)
    config = config_of(root)
    data = open_run_data(config)
    plan = reading_plan(config, data)
    with pytest.raises(ConfigError, match=r"no kind of picture(.*\n)*.*\.svg, \.png or \.pdf\n  found: mix\.gif"):
        save_plot(tmp_path / "mix.gif", plan, data.order)
    with pytest.raises(ConfigError, match="no kind of picture"):
        save_plot(tmp_path / "mix", plan, data.order)
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"the plot needs matplotlib(?s:.*)pip install 'fmscale\[plot\]'"):
        save_plot(tmp_path / "other.svg", plan, data.order)


def test_a_plot_that_cannot_be_written_is_refused_before_anything_is_shown(root: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for place, told in (
        ("mix.jpg", "no kind of picture has this ending"),
        ("nowhere/mix.png", f"found: no directory {tmp_path / 'nowhere'}"),
        ("folder.png", "folder.png is a directory"),
    ):
        for more in ([], ["--json"]):
            code, out, err = fmscale("data", "mix", *arguments(root), "--plot", str(tmp_path / place), *more)
            assert (code, out) == (2, "")
            assert told in err
            assert len(err.splitlines()) == 4


def test_every_source_is_in_the_legend(root: Path, tmp_path: Path) -> None:
    names = [f"data.sources.{name}.{key}" for name in ("_low", "code") for key in ("corpus", "weight")]
    more = [f"{names[0]}={root}/code", f"{names[1]}=1", "data.stages=[]", f"{names[3]}=2"]
    succeeds("data", "mix", *arguments(root, *more), "--plot", str(tmp_path / "mix.svg"))
    picture = (tmp_path / "mix.svg").read_text()  # glyphs are paths, each text a comment beside its own
    assert [picture.count(f"<!-- {name} -->") for name in ("_low", "books", "code", "web")] == [1, 1, 1, 1]


def test_stages_that_never_hold_are_told(root: Path) -> None:
    stages = "{from_tokens: 500, weights: {books: 1}}, {from_tokens: 510, weights: {web: 1, code: 1}}"
    more = [f"data.stages=[{stages}, {{from_tokens: 6e9, weights: {{code: 1}}}}]", "train.batch_ramp=[]"]
    notes = [
        "stage data.stages.0 (from_tokens=500) never holds: data.stages.1 begins with the same step, 2",
        "stage data.stages.2 (from_tokens=6,000,000,000) never holds: the run has 102,400 tokens",
    ]
    code, _, err = fmscale("data", "mix", *arguments(root, *more))
    assert (code, err.splitlines()) == (0, [f"note: {note}" for note in notes])
    out = succeeds("train", "--dry-run", *arguments(root, *more))
    assert out.splitlines()[-2:] == [f"note      {note}" for note in notes]


def test_rows_behind_all_that_can_be_counted_are_no_batch(root: Path) -> None:
    for more in (["--from", "1000000000000000"], ["--from", "5", "--steps", "9" * 300]):
        code, out, err = fmscale("order", *arguments(root), *more)
        assert (code, out) == (2, "")
        assert "the steps are beyond all that can be counted" in err
        assert max(map(len, err.splitlines())) < 90
        assert "expected: steps up to 5,864,062,014,812, which is 70,368,744,177,664 rows" in err


def far(sources: int, **changes: Any) -> tuple[Config, RunData]:
    """A run of 15 T tokens over corpora that nobody has."""
    names = [f"source-{number:02d}" for number in range(sources)]
    weights = {name: float(number + 1) for number, name in enumerate(names)}
    plain = Config()
    config = replace(
        plain,
        data=replace(
            plain.data,
            seq_len=4096,
            sources={name: SourceConfig(corpus="", weight=weight) for name, weight in weights.items()},
            stages=[
                StageConfig(from_tokens=5e12, weights=weights, curve="cosine"),
                StageConfig(from_tokens=12e12, weights=dict.fromkeys(names, 1)),
            ],
        ),
        train=replace(plain.train, steps=-(-15 * 10**12 // (4096 * 4096)), global_batch=4096),
    )
    steps = StepPlan.constant(4096, 4096)
    order = Order(
        begun_with=tuple(SourceSpec(name=n, chunks=10**6, chunk_tokens=2**20, content_hash=n) for n in names),
        stages=stages_of(config.data, names, steps),
        seed=1,
        row_tokens=4096,
        steps=steps,
        window_chunks=64,
        ledger=Ledger(),
    )
    return config, RunData(train={}, heldout={}, order=order)


def test_letters_name_more_sources_than_there_are_small_ones() -> None:
    for sources in (62, 63):
        config, data = far(sources)
        out = StringIO()
        show(Console(file=out, width=120), reading_plan(config, data), data.order)
        marks = [line.split(" source-")[0][-1] for line in out.getvalue().splitlines() if " source-" in line][:sources]
        assert len(set(marks)) == 62
        assert ("letters repeat: there are more than 62 sources" in out.getvalue()) == (sources == 63)


@pytest.mark.parametrize("sources", [3, 8, 12])
def test_a_plan_of_15_t_tokens_costs_less_than_a_second_and_fits(sources: int) -> None:
    config, data = far(sources)
    out = StringIO()
    begun = time.process_time()
    plan = reading_plan(config, data)
    show(Console(file=out, width=120), plan, data.order)
    assert time.process_time() - begun < 1.0
    assert sum(source.tokens for source in plan.sources) == plan.tokens >= 15e12
    assert "15 T tokens in 894,070 steps" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert sum(weights_at(data.order, plan.tokens // 8192).values()) == pytest.approx(1)


def test_a_damaged_ledger_is_no_plan(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / FILE_NAME).write_text("{\n")
    code, _, err = fmscale("data", "mix", *arguments(root, f"run.root={tmp_path}"))
    assert code == 3
    assert "the edit ledger is not as it was written" in err
