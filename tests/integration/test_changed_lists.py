"""A list that a step reads and that changes: while tasks run it is an error, between two starts the work starts over.

What a corpus says of its lists is what its tasks have read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import xxhash

from data_pipeline.document import Document, drop
from data_pipeline.pipeline import Recipe
from data_pipeline.run import prepare
from data_pipeline.step_files import lines_of, once_per_file, reads_files
from fmscale.corpus.manifest import Manifest
from fmscale.errors import DataError
from tests.raw_text import unlike
from tests.word_corpora import GOLDEN

HERE, ROOT = __name__, Path(__file__).parents[2]
FIRST = xxhash.xxh3_128_hexdigest(b"d1\nd2\n")


@once_per_file
def _words(paths: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word for path in paths for word in lines_of(path))


@reads_files("words")
def without(
    documents: Iterable[Document], *, words: Sequence[str] = (), edit: str = "", at: str = ""
) -> Iterator[Document]:
    """Drops documents of these ids. At the document `at` the first list becomes `edit`, of the same length and time."""
    for document in documents:
        if at and document.id == at:
            before = os.stat(words[0])
            Path(words[0]).write_text(edit)
            os.utime(words[0], ns=(before.st_atime_ns, before.st_mtime_ns))
        yield drop(document, "named") if document.id in _words(words) else document


def dies(documents: Iterable[Document], *, at: str = "") -> Iterator[Document]:
    for document in documents:
        if document.id == at and not Path(os.environ["DIED"]).exists():
            Path(os.environ["DIED"]).touch()
            raise KeyboardInterrupt
        yield document


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = [json.dumps({"id": f"d{number}", "text": unlike(number)}) for number in range(100)]
    (tmp_path / "raw.jsonl").write_text("\n".join(lines))
    (tmp_path / "list").write_text("d1\nd2\n")
    monkeypatch.setenv("DIED", str(tmp_path / "died"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(there: Path, steps: list[Any], output: str = "c") -> Recipe:
    sizes = {"chunk_tokens": 256, "task_bytes": 10_000, "heldout_fraction": 0.0}
    where = {"inputs": [str(there / "raw.jsonl")], "output": str(there / output)}
    return Recipe(**where, tokenizer=str(GOLDEN / "tokenizer.model"), steps=steps, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", ["d0", "d50", "d99"])
def test_one_that_changes_while_tasks_run_is_found(there: Path, at: str) -> None:
    """In the first task, in the middle, in the last one after its last look at the list."""
    steps = [{f"{HERE}:without": {"words": ["list"], "edit": "d1\nd7\n", "at": at}}]
    with pytest.raises(
        DataError,
        match=rf"what step {HERE}:without reads changed while .*\n  expected: words: xxh3_128 \['"
        rf"{FIRST}'\]\n  found: \['{there}/list'\]: .*\n  do: put it back",
    ):
        prepare(recipe(there, steps), workers=0)
    assert not (there / "c/manifest.json").exists()


def test_put_back_the_work_goes_on_and_left_it_starts_over(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [{f"{HERE}:without": {"words": ["list"]}}, {f"{HERE}:dies": {"at": "d50"}}]
    for change, said in (("d1\nd2\n", ""), ("d1\nd7\n", "unfinished work starts over")):
        (there / "died").unlink(missing_ok=True)
        (there / "list").write_text("d1\nd2\n")
        output = f"c{len(said)}"
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe(there, steps, output), workers=0)
        done = {path.name for path in (there / output).glob(".work/*/scan-*")}
        assert done
        (there / "list").write_text(change)
        capsys.readouterr()
        manifest = prepare(recipe(there, steps, output), workers=0)
        assert said in capsys.readouterr().err
        fresh = prepare(recipe(there, steps, f"fresh{len(said)}"), workers=0)
        assert manifest.content_hash == fresh.content_hash
        pinned = manifest.recipe["steps"][0][1]["words"]
        assert pinned == [xxhash.xxh3_128_hexdigest(change.encode())], "what it says is what was read"


def test_the_corpus_says_what_was_read_and_not_what_the_list_has_become(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipeline import run

    def finish(*arguments: Any) -> Manifest:
        (there / "list").write_text("d5\nd6\n")
        return finished(*arguments)

    finished = run.finish
    monkeypatch.setattr(run, "finish", finish)
    manifest = prepare(recipe(there, [{f"{HERE}:without": {"words": ["list"]}}]), workers=0)
    assert manifest.recipe["steps"][0][1]["words"] == [FIRST]
    assert manifest.counts["dropped"] == {"named": 2}


def test_code_that_changes_is_found(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(there))
    (there / "changing_step.py").write_text(
        "def step(documents):\n"
        "    for document in documents:\n"
        "        if document.id == 'd50':\n"
        f"            open({str(there / 'changing_step.py')!r}, 'a').write('# more')\n"
        "        yield document\n"
    )
    with pytest.raises(DataError, match=r"changing_step:step reads changed .*\n  expected: its code: xxh3_128 .*\n"):
        prepare(recipe(there, ["changing_step:step"]), workers=0)


def test_workers_of_ray_look_too(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # theirs too: the step is a test's
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        manifest = prepare(recipe(there, [{f"{HERE}:without": {"words": ["list"]}}]), workers=1)
        assert manifest.counts["dropped"] == {"named": 2}
        (there / "list").write_text("d1\nd2\n")
        edit = {f"{HERE}:without": {"words": ["list"], "edit": "d1\nd7\n", "at": "d60"}}
        with pytest.raises(DataError, match="without reads changed while"):
            prepare(recipe(there, [edit], "other"), workers=1)
    finally:
        ray.shutdown()
