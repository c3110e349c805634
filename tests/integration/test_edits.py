"""`fmscale order edit` as a user meets it: the past stays, the future is what the ledger says, mistakes are told."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fmscale.config import Config, load
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.order import Order
from fmscale.corpus.replay import replay
from fmscale.corpus.sources import open_run_data
from fmscale.observe.metrics import series
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.lease import Lease
from launcher import cli
from launcher.snapshot import enter
from launcher.start import check
from tests.corpora import grow_corpus, make_corpus
from tests.integration.test_train import go, hashes
from tests.ranks import RankError
from tests.runs import TINY

pytestmark = pytest.mark.processes

TRAINED, ROWS = 8, 8
"""Steps that the run of these tests has trained, and rows of each."""


def fmscale(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of the command, in this process: its start would take most of the time."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["fmscale", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = argv
    return code, out.getvalue(), err.getvalue()


def succeeds(*arguments: str) -> str:
    code, out, err = fmscale(*arguments)
    assert code == 0, err
    return out


def settings(root: Path, *more: str) -> list[str]:
    (root / "tiny.yaml").write_text(TINY)
    place = [str(root / "tiny.yaml"), f"run.root={root}", "run.name=run", "data.window_chunks=2"]
    return [*place, *(f"data.sources.{name}.corpus={root / name}" for name in ("web", "books")), *more]


def config_of(root: Path, *more: str) -> Config:
    given = settings(root, *more)
    return check(load(given[:1], given[1:]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sources after 8 steps, checkpoints after 4 and 8."""
    root = tmp_path_factory.mktemp("edits")
    for number, name in enumerate(("web", "books", "code")):
        make_corpus(root / name, chunks=20 + 9 * number, seed=number)
    make_corpus(root / "foreign", chunks=3, pieces=461)
    go(config_of(root, f"train.steps={TRAINED}"))
    return root


@pytest.fixture
def root(tmp_path: Path, trained: Path) -> Path:
    """The same, to be edited: with corpora of its own, which may grow."""
    shutil.copytree(trained, tmp_path / "root")
    enter(config_of(tmp_path / "root", f"train.steps={TRAINED}"))
    return tmp_path / "root"


def replayed(root: Path, first: int, last: int, *more: str) -> list[str]:
    return [record["batch_hash"] for record in replay(config_of(root, *more), first, last - first + 1, dp=1)]


def order_of(root: Path) -> Order:
    return open_run_data(config_of(root)).order


def rows_of_steps(first: int, last: int) -> list[int]:
    return list(range(ROWS * (first - 1), ROWS * last))


def stages_file(root: Path, *lines: str) -> str:
    root.mkdir(exist_ok=True)
    (root / "stages.yaml").write_text("stages:\n" + "".join(f"  - {line}\n" for line in lines))
    return str(root / "stages.yaml")


def weights(before: Order, after: Order) -> None:
    at = after.locate(rows_of_steps(9, 40))
    assert np.bincount(at.source).tolist() == [64, 192]  # of 256 rows, a quarter are of `books`


def stages(before: Order, after: Order) -> None:
    assert set(after.locate(rows_of_steps(9, 16)).source) == {0}
    assert np.bincount(after.locate(rows_of_steps(17, 32)).source, minlength=2).tolist() == [64, 64]


def source(before: Order, after: Order) -> None:
    assert [each.name for each in after.sources] == ["books", "web", "code"]
    at = after.locate(rows_of_steps(9, 40))
    assert np.bincount(at.source).tolist() == [64, 64, 128]
    assert sorted(at.position[at.source == 2]) == list(range(128))


def generation(before: Order, after: Order) -> None:
    assert (before.sources[1].chunks, after.sources[1].chunks) == (20, 31)
    at = after.locate(rows_of_steps(9, 40))
    assert set(at.chunk[at.source == 1][:124]) == set(range(31))


def quarantine(before: Order, after: Order) -> None:
    at, plain = after.locate(rows_of_steps(9, 60)), before.locate(rows_of_steps(9, 60))
    assert ((at.chunk == plain.chunk) | (plain.chunk == 3)).all()
    assert 3 not in at.chunk[at.source == 0]


def skip(before: Order, after: Order) -> None:
    there, here = before.locate(rows_of_steps(12, 30)), after.locate(rows_of_steps(9, 27))
    assert all((a == b).all() for a, b in zip(there, here, strict=True))


KINDS: list[tuple[Callable[[Order, Order], None], list[str], str]] = [
    (weights, ["web=3", "books=1"], "weights: books=25% web=75%"),
    (stages, ["STAGES"], "stages: 2, the first from row 64 by books=100% web=0%"),
    (
        source,
        ["code=CODE", "web=1", "books=1", "code=2"],
        "chunks 38, weights books=25% web=25% code=50%",
    ),
    (generation, ["web"], "generation: source web, generation 1, chunks 31"),
    (quarantine, ["books", "3"], "quarantine: source books: chunk 3 is quarantined from row 64 on, chunk "),
    (skip, ["3"], "skip: rows 24"),
]


@pytest.mark.parametrize(("effect", "arguments", "told"), KINDS, ids=[kind[0].__name__ for kind in KINDS])
def test_each_kind_changes_the_future_alone(
    root: Path, effect: Callable[[Order, Order], None], arguments: list[str], told: str
) -> None:
    if effect is generation:
        grow_corpus(root / "web", chunks=11)
    file = stages_file(root, "{weights: {books: 1}}", "{from_tokens: 8192, weights: {books: 2, web: 2}}")
    arguments = [argument.replace("STAGES", file).replace("CODE", str(root / "code")) for argument in arguments]
    before, hashes_before = order_of(root), replayed(root, 1, 30)
    files = {path: path.read_bytes() for path in sorted((root / "run").rglob("*")) if path.is_file()}
    command = ["order", "edit", str(root / "run"), effect.__name__, *arguments]

    assert succeeds(*command, "--dry-run").startswith("would be 0  from step 9  ")
    assert {path: path.read_bytes() for path in sorted((root / "run").rglob("*")) if path.is_file()} == files
    out = succeeds(*command)
    assert out.startswith("entry 0  from step 9  ")
    assert told in out
    assert out.strip() == succeeds("order", "log", str(root / "run")).strip()
    (entry,) = json.loads(succeeds("order", "log", str(root / "run"), "--json"))
    assert (entry["step"], entry["from_row"], entry["kind"], entry["seq"]) == (9, 64, effect.__name__, 0)

    effect(before, order_of(root))
    after = replayed(root, 1, 30)
    assert after[:TRAINED] == hashes_before[:TRAINED] == hashes(config_of(root))
    assert after[TRAINED:] != hashes_before[TRAINED:]


def test_all_kinds_in_one_run_that_goes_on_with_other_ranks(root: Path) -> None:
    """One after the other, each from a later step than the one before; then the run trains across all of them."""
    past = hashes(config_of(root))
    grow_corpus(root / "web", chunks=11)
    run = str(root / "run")
    file = stages_file(root, "{weights: {books: 1}, curve: linear}", "{from_tokens: 9e3, weights: {web: 1}}")
    edits = [
        ["weights", "web=3", "books=1"],
        ["source", f"code={root / 'code'}", "code=2", "web=1"],
        ["generation", "web"],
        ["quarantine", "code", "5"],
        ["skip", "2"],
        ["stages", file],
    ]
    for step, each in enumerate(edits, 9):
        out = succeeds("order", "edit", run, *each, "--from-step", str(step))
        assert f"from step {step}  {each[0]}: " in out
    # An entry for a step before others, written last: chunk 1 is read no more from there on.
    succeeds("order", "edit", run, "quarantine", "web", "1", "--from-step", "10")
    go(config_of(root, "train.steps=20", "parallel.dp=2"))  # nothing in the settings speaks of the new source
    assert hashes(config_of(root))[:TRAINED] == past
    assert hashes(config_of(root)) == replayed(root, 1, 20)
    order = order_of(root)
    for line in series(root / "run")[TRAINED:]:  # counters of each source, the new one's too
        assert list(line["source_tokens"]) == ["books", "web", "code"]
        assert list(line["source_tokens"].values()) == (order.shares(line["rows"]) * 64).tolist()
        assert sum(line["source_tokens"].values()) == line["tokens"]
        assert list(line["source_epochs"].values()) == order.epochs(line["rows"])
    shown = json.loads(succeeds("order", *settings(root), "--from", "20", "--json"))
    assert shown[0]["batch_hash"] == hashes(config_of(root))[19]
    log = succeeds("order", "log", run).splitlines()
    assert [line.split("  ")[1] for line in log] == [f"from step {step}" for step in (9, 10, 11, 12, 13, 14, 10)]

    # The corpus of the new source moves, and the command says where to; nothing else may be said of it.
    (root / "code").rename(root / "moved")
    code, _, err = fmscale("train", "--dry-run", *settings(root, "train.steps=24"))
    assert code == 3
    assert "manifest.json" in err
    moved = f"data.sources.code.corpus={root / 'moved'}"
    code, _, err = fmscale("train", "--dry-run", *settings(root, moved, "data.sources.code.weight=5"))
    assert code == 2
    assert "data.sources.code.weight: 1.0 -> 5.0" in err
    assert "code: " in succeeds("train", "--dry-run", *settings(root, moved, "train.steps=24"))
    go(config_of(root, moved, "train.steps=22"))
    assert hashes(config_of(root)) == replayed(root, 1, 22, moved)


def test_after_an_older_checkpoint_and_a_roll_back(root: Path) -> None:
    run, config = str(root / "run"), config_of(root, "train.steps=12")
    older, newest = [commit.name for commit in CheckpointStore(root / "run" / "checkpoints").list()]
    past, whole = hashes(config), replayed(root, 1, 12)
    out = succeeds("order", "edit", run, "skip", "1", "--after", older)
    assert "entry 0  from step 5  skip: rows 8" in out
    assert out.endswith(f"go on with `fmscale train ... --roll-back {older}`\n")
    changed = f"entry 0 of the edit ledger (skip) changes rows that {newest} has trained"
    with pytest.raises(RankError, match=rf"{re.escape(changed)}(?s:.*)--roll-back"):
        go(config)
    given = settings(root, "train.steps=12")
    for command in (["order", *given], ["data", "mix", *given]):  # how one looks at such an edit
        code, _, err = fmscale(*command)
        assert (code, err.startswith(f"note: {changed}")) == (0, True)
    code, _, err = fmscale("train", "--dry-run", *given)
    assert (code, changed in err) == (4, True)
    succeeds("train", "--dry-run", "--roll-back", older, *given)
    code, _, err = fmscale("train", "--dry-run", "--roll-back", "step-9", *given)
    assert (code, "no such checkpoint" in err) == (2, True)
    go(config, env={"FMSCALE_ROLL_BACK": older})
    assert hashes(config) == past[:4] + replayed(root, 5, 12)
    assert not set(hashes(config)[4:]) & set(whole), "rows have their numbers in the hash"


def test_a_run_that_is_being_trained_is_left_alone_and_its_holder_is_named(root: Path) -> None:
    with Lease(root / "run").held():
        code, _, err = fmscale("order", "edit", str(root / "run"), "skip", "1")
        assert code == 5
        assert "another process holds this run" in err
        assert "found: process " in err
        assert "from step 9  skip" in succeeds("order", "edit", str(root / "run"), "skip", "1", "--dry-run")
    assert not (root / "run" / FILE_NAME).exists() or Ledger.load(root / "run" / FILE_NAME) == Ledger()


MISTAKES: list[tuple[list[str], int, list[str]]] = [
    (["rewind"], 2, ["`rewind` is no kind of edit", "weights, stages, source, generation, quarantine, skip"]),
    (["weights"], 2, ["no weights of the run's sources", "found: no weights", "NAME=WEIGHT of books, web"]),
    (["weights", "web"], 2, ["a weight is no number", "found: web"]),
    (["weights", "web=much"], 2, ["a weight is no number", "found: web=much"]),
    (["weights", "web=nan"], 2, ["no weights of the run's sources", "found: web=nan"]),
    (["weights", "web=0"], 2, ["no weights of the run's sources", "some above 0"]),
    (["weights", "web=1", "wiki=1"], 2, ["no weights of the run's sources", "of books, web:"]),
    (["weights", "web=1", "web=2"], 2, ["a source has two weights", "web=WEIGHT once"]),
    (["weights", "web=1", "books=1e-9"], 2, ["the weight of source `books` is too small", "1/65536"]),
    (["stages"], 2, ["`stages` takes one file", "stages FILE.yaml"]),
    (["stages", "absent.yaml"], 2, ["a config file is missing", "absent.yaml"]),
    (["stages", "LATE"], 2, ["leave a gap before the first", "4,096 or less, where step 9", "from 9,000 tokens"]),
    (["stages", "EMPTY"], 2, ["leave a gap before the first", "no `stages` in "]),
    (["stages", "FOREIGN"], 2, ["stages.0 has no usable weights", "sources books, web", "found: wiki: 1"]),
    (["stages", "DANGLING"], 2, ["stages.0 has a curve that leads nowhere"]),
    (["source"], 2, ["`source` takes a name with its corpus", "found: nothing"]),
    (["source", "a.b=CODE", "web=1"], 2, ["`source` takes a name with its corpus"]),
    (["source", "web=CODE", "web=1"], 2, ["the run has a source of this name"]),
    (["source", "code=/nowhere", "code=1"], 3, ["/nowhere"]),
    (["source", "code=CODE"], 2, ["no weights of the run's sources", "of books, web, code:"]),
    (["source", "code=CODE", "web=1"], 2, ["the new source has no weight", "code=WEIGHT among the weights"]),
    (["source", "code=FOREIGN_CORPUS", "code=1"], 2, ["made with another tokenizer", "run's tokenizer.model"]),
    (["generation", "wiki"], 2, ["does not name a source of the run at step 9", "SOURCE one of books, web"]),
    (["generation", "web"], 2, ["`web` has no newer generation", "expected: generation 1 in ", "found: generation 0"]),
    (["quarantine", "web"], 2, ["does not name a source of the run", "quarantine SOURCE CHUNK"]),
    (["quarantine", "web", "three"], 2, ["the chunk is no number", "found: three"]),
    (["quarantine", "web", "20"], 2, ["source `web` has no such chunk", "0 to 19"]),
    (["skip"], 2, ["`skip` takes a number of steps", "found: nothing"]),
    (["skip", "0"], 2, ["`skip` takes a number of steps, 1 or more", "found: 0"]),
    (["skip", "some"], 2, ["the number of steps is no number"]),
    (["skip", "9"], 2, ["`skip` takes fewer steps than that", "1 to 8, as many as the run has", "found: 9"]),
    (["skip", "1" + "0" * 17], 2, ["`skip` takes fewer steps than that"]),
    (["skip", "1" + "0" * 19], 2, ["no number, or beyond all that can be counted"]),
    (["skip", "1", "--from-step", str(10**19)], 2, ["beyond all that can be counted", "--from-step 8796093022208 or"]),
    (["skip", "8", "--from-step", str(2**43)], 3, ["(skip) does not fit this run", "rows up to 70,368,744,177,664"]),
    (["stages", "FAR"], 2, ["stages.1 begins beyond all rows that can be counted", "=1e+16", "4.5e+15: 70,"]),
    (["stages", "FARTHEST"], 2, ["stages.1 begins beyond all rows", "found: from_tokens=1e+300", "mend the number"]),
    (["stages", "HEAVY"], 2, ["stages.0 has no usable weights", "weights of 0 to 1e+15", "found: web: 1e+308, books"]),
    (["weights", "web=1e308", "books=1e308"], 2, ["no weights of the run's sources", "of books, web: 0 to 1e+15"]),
    (["skip", "1", "--from-step", "3"], 2, ["step 3 was trained already", "use --from-step 9;", "has trained 8 steps"]),
    (["skip", "1", "--after", "step-9"], 2, ["no such checkpoint", "found: step-9"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_is_one_clear_message_and_changes_nothing(
    trained: Path, tmp_path: Path, arguments: Sequence[str], code: int, words: list[str]
) -> None:
    files = {
        "LATE": stages_file(tmp_path / "late", "{from_tokens: 9e3, weights: {web: 1}}"),
        "FAR": stages_file(tmp_path, "{weights: {web: 1}}", "{from_tokens: 1e16, weights: {books: 1}}"),
        "FOREIGN_CORPUS": str(trained / "foreign"),
        "CODE": str(trained / "code"),
    }
    for name, content in (
        ("EMPTY", "stages: []\n"),
        ("FOREIGN", "stages: [{weights: {wiki: 1}}]\n"),
        ("DANGLING", "stages: [{weights: {web: 1}, curve: cosine}]\n"),
        ("HEAVY", "stages: [{weights: {web: 1e308, books: 1e308}, curve: linear}, {from_tokens: 9e3}]\n"),
        ("FARTHEST", "stages: [{weights: {web: 1}}, {from_tokens: 1e300, weights: {web: 1}}]\n"),
    ):
        (tmp_path / f"{name}.yaml").write_text(content)
        files.setdefault(name, str(tmp_path / f"{name}.yaml"))
    for name, path in files.items():
        arguments = [path if a == name else a.replace(f"={name}", f"={path}") for a in arguments]
    found, out, err = fmscale("order", "edit", str(trained / "run"), *arguments)
    assert found == code, out + err
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 6
    assert "Traceback" not in err
    for each in words:
        assert each in err
    assert succeeds("order", "log", str(trained / "run")).startswith("no edits")


def test_settings_of_a_source_that_an_edit_added_are_looked_at_too(root: Path) -> None:
    added = [f"code={root / 'code'}", "code=1", "web=1"]
    succeeds("order", "edit", str(root / "run"), "source", *added)
    code = f"data.sources.code.corpus={root / 'code'}"
    for value, found in (("-1", "-1.0"), ("nan", "nan"), ("inf", "inf"), ("1e308", "1e+308")):
        given = settings(root, code, f"data.sources.code.max_epochs={value}", "train.steps=12")
        for command in (["train", "--dry-run"], ["data", "mix"], ["order"]):
            rc, _, err = fmscale(*command, *given)
            assert (rc, err.splitlines()) == (
                2,
                [
                    "error: source `code` has an impossible max_epochs",
                    "  expected: a number > 0, or 0 for no limit; at most 1e+09",
                    f"  found: {found}",
                    "  do: set data.sources.code.max_epochs",
                ],
            )
    rc, _, err = fmscale("data", "mix", *settings(root, code, "data.sources.code.weight=-1", "train.steps=12"))
    assert rc == 2
    assert "source `code` has an impossible weight\n  expected: a number from 0 to 1e+15\n  found: -1.0" in err
    succeeds("data", "mix", *settings(root, code, "data.sources.code.max_epochs=9", "train.steps=12"))


def test_an_edit_that_later_ones_do_not_allow_says_where_it_may_begin(root: Path) -> None:
    run = str(root / "run")
    succeeds("order", "edit", run, "weights", "web=1", "books=1", "--from-step", "12")
    code, _, err = fmscale("order", "edit", run, "source", f"code={root / 'code'}", "code=1", "--from-step", "10")
    assert code == 3
    assert "does not go together with later ones that are there already" in err
    assert "use --from-step 12 or later" in err
    assert len(err.splitlines()) <= 6
    succeeds("order", "edit", run, "source", f"code={root / 'code'}", "code=1", "--from-step", "12")
    assert fmscale("order", "edit", run, "quarantine", "code", "1", "--from-step", "11")[0] == 2  # not there yet
    succeeds("order", "edit", run, "quarantine", "web", "1", "--from-step", "11")
    code, _, err = fmscale("order", "edit", run, "quarantine", "web", "1", "--from-step", "13")
    assert "quarantined already" in err


def test_a_quarantine_beyond_the_budget_is_not_written(root: Path) -> None:
    """Of a run that replaces chunks by itself; by hand, with bad_chunks=fail, as many as one likes."""
    run, ledger, config = str(root / "run"), root / "run" / FILE_NAME, root / "run" / "config.yaml"
    succeeds("order", "edit", run, "quarantine", "web", "1")
    succeeds("order", "edit", run, "quarantine", "web", "2", "--dry-run")
    config.write_text(config.read_text().replace("bad_chunks: fail", "bad_chunks: quarantine"))
    before = ledger.read_bytes()
    for more in ([], ["--dry-run"]):
        code, _, err = fmscale("order", "edit", run, "quarantine", "web", "2", *more)
        assert code == 3
        assert "more chunks of source `web` are damaged than the run may replace" in err
        assert ledger.read_bytes() == before
    succeeds("train", "--dry-run", *settings(root, "train.steps=12"))


def test_the_log_is_shown_where_a_corpus_does_not_open(root: Path) -> None:
    run = str(root / "run")
    succeeds("order", "edit", run, "quarantine", "web", "1")
    out = succeeds("order", "edit", run, "weights", "web=1", "--from-step", "10")
    assert out == "entry 1  from step 10  weights: books=0% web=100% (beyond train.steps=8)\n"
    whole = json.loads(succeeds("order", "log", run, "--json"))
    (root / "web").rename(root / "away")
    code, log, err = fmscale("order", "log", run)
    assert code == 0
    assert log.splitlines()[0].startswith("entry 0  from step 9  quarantine: source web, chunk 1, substitute ")
    assert log.splitlines()[1] == out.strip()
    assert err.startswith("note: from the ledger alone, without lost rows, since the corpora do not open: ")
    assert str(root / "web") in err
    for entry in whole:
        for lost in ("lost_rows", "lost_tokens"):
            entry.pop(lost, None)
    assert json.loads(fmscale("order", "log", run, "--json")[1]) == whole


def test_a_moved_corpus_of_a_source_that_the_ledger_added_is_named_with_its_remedy(root: Path) -> None:
    succeeds("order", "edit", str(root / "run"), "source", f"code={root / 'code'}", "web=1", "books=1", "code=2")
    (root / "code").rename(root / "moved")
    for command in (["order"], ["data", "mix"]):
        code, _, err = fmscale(*command, *settings(root, "train.steps=12"))
        assert code == 3
        assert err.splitlines() == [
            "error: source `code` of the run has no finished corpus",
            f"  expected: {root / 'code' / 'manifest.json'}, where the settings or the run's ledger say it is",
            "  found: no such directory",
            "  do: where it was moved, train with data.sources.code.corpus=NEW (the run keeps it); else restore it",
        ]
    assert "source `code` of the run has" in fmscale("order", "edit", str(root / "run"), "skip", "1")[2]
    there = ("train.steps=12", f"data.sources.code.corpus={root / 'moved'}")
    succeeds("train", "--dry-run", *settings(root, *there))
    go(config_of(root, *there))
    assert "skip" in succeeds("order", "edit", str(root / "run"), "skip", "1")


def test_order_alone_and_its_help(trained: Path) -> None:
    for arguments in (["order"], ["order", "--help"]):
        _, out, err = fmscale(*arguments)
        assert all(word in out + err for word in ("show", "edit", "log"))
    line = succeeds("order", *settings(trained), "--from", "2", "--dp", "2")
    assert line.startswith(
        f"step 2  batch_hash {hashes(config_of(trained))[1]}  sequences of 64  rows by rank: 8..11  12..15"
    )
    assert line == succeeds("order", "show", *settings(trained), "--from", "2", "--dp", "2")
    assert fmscale("order", "log", str(trained / "absent"))[0] == 2
    assert fmscale("order", "edit", str(trained / "absent"), "skip", "1")[0] == 2


def test_a_run_that_never_started_can_be_edited_from_its_first_step(root: Path) -> None:
    shutil.rmtree(root / "run")
    enter(config_of(root))
    assert "from step 1  skip" in succeeds("order", "edit", str(root / "run"), "skip", "1")


def test_a_skip_has_one_mixture(root: Path) -> None:
    """What it leaves out is what the mixture at its first step would have read: another must not begin inside."""
    run, ledger = str(root / "run"), root / "run" / FILE_NAME
    succeeds("order", "edit", run, "quarantine", "web", "1", "--from-step", "10")
    succeeds("order", "edit", run, "weights", "web=1", "--from-step", "12")
    before, plain = ledger.read_bytes(), order_of(root)
    code, _, err = fmscale("order", "edit", run, "skip", "5")
    assert (code, ledger.read_bytes()) == (2, before)
    assert err.splitlines() == [
        "error: another mixture begins inside of what is to be skipped",
        "  expected: a skip of 3 steps at most, which ends before step 12",
        "  found: steps 9 to 13",
        "  do: skip fewer steps: what a later mixture would have read can be left out from its own step on only",
    ]
    succeeds("order", "edit", run, "skip", "3")  # a quarantine inside changes no mixture
    gone = plain.locate(rows_of_steps(9, 11))
    left_out = set(zip(gone.source.tolist(), gone.chunk.tolist(), gone.start.tolist(), strict=True))
    at = order_of(root).locate(rows_of_steps(9, 14))
    read = set(zip(at.source.tolist(), at.chunk.tolist(), at.start.tolist(), strict=True))
    assert len(left_out) == 3 * ROWS
    assert not left_out & read


def test_a_ledger_that_is_not_the_checkpoints_is_noticed_and_put_back(root: Path) -> None:
    run, file = root / "run", root / "run" / FILE_NAME
    succeeds("order", "edit", str(run), "weights", "web=1", "books=3")
    go(config_of(root, "train.steps=12"))
    right, trained = file.read_bytes(), hashes(config_of(root, "train.steps=12"))
    assert succeeds("order", "restore", str(run)).endswith("nothing to do\n")
    newest = CheckpointStore(run / "checkpoints").list()[-1].name
    what = f"the edit ledger does not continue the one in checkpoint {newest}"
    damaged = right.replace(b"3", b"4", 1)
    for wrong, message in ((None, what), (damaged, "is not as it was written")):
        file.unlink()
        if wrong is not None:
            file.write_bytes(wrong)
        commands = [["order", *settings(root, "train.steps=12")], ["train", "--dry-run", *settings(root)]]
        commands += [
            ["data", "mix", *settings(root, "train.steps=12")],
            ["order", "edit", str(run), "weights", "web=1"],
        ]
        for command in commands:
            code, _, err = fmscale(*command)
            assert code == 3, command
            assert message in err
            assert "`fmscale order restore RUN`" in err
        if wrong is None:
            assert not file.exists(), "nothing was written"
            assert fmscale("order", "log", str(run))[1:] == (
                "no edits\n",
                f"note: {what} expected: its 1 entries first, the last with hash {Ledger.parse(right, '').head[:16]} "
                f"found: 0 entries, the last with hash {'0' * 16} do: put back ledger.jsonl as it was, or `fmscale "
                "order restore RUN`: the newest checkpoint has a copy\n",
            )
        out = succeeds("order", "restore", str(run))
        kept = "" if wrong is None else "; what was there is ledger.jsonl.replaced-0"
        assert out == f"1 entries, as {newest} has them; later ones are not in it{kept}\n"
        assert file.read_bytes() == right
    assert (run / f"{FILE_NAME}.replaced-0").read_bytes() == damaged
    assert replayed(root, 1, 12, "train.steps=12") == trained
    shutil.rmtree(run)
    enter(config_of(root))
    code, _, err = fmscale("order", "restore", str(run))
    assert code == 4
    assert "there is no checkpoint to take the edit ledger from" in err


def test_a_config_that_is_not_as_it_was_written(root: Path) -> None:
    file = root / "run" / "config.yaml"
    for content, found in ((b"\xff\xfe", "'utf-8' codec can't decode"), (b"", "no source")):
        file.write_bytes(content)
        for command in (["order", "log", str(root / "run")], ["order", "edit", str(root / "run"), "skip", "1"]):
            code, _, err = fmscale(*command)
            assert code == 3, command
            assert "the run's config.yaml is not as it was written" in err
            assert f"found: {found}" in err
            assert "the run's checkpoints hold it too" in err


def test_plans_of_a_run_that_is_there_are_of_its_settings(root: Path) -> None:
    other = settings(root, "data.sources.web.weight=5")
    for command in (["order"], ["data", "mix"], ["train", "--dry-run"]):
        code, out, err = fmscale(*command, *other)
        assert (code, out) == (2, ""), command
        assert "this run exists with other settings" in err
        assert "data.sources.web.weight: 1.0 -> 5.0" in err


def test_a_defect_of_ours_is_told_in_short(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run: str) -> Path:
        raise KeyError("a key\nof two lines")

    monkeypatch.setattr("launcher.cli_order.run_dir_of", fails)
    code, _, err = fmscale("order", "log", "run")
    assert code == 1
    lines = err.splitlines()
    assert lines[0] == "error: this should not have happened"
    assert lines[1].startswith("  found: KeyError: 'a key\\nof two lines' (test_edits.py, line ")
    assert lines[2] == "  do: report it, with what `fmscale --debug ...` shows of the same command"
    assert len(lines) == 3
