"""A step's code counts with what it imports of its own, and with nothing else."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import data_pipeline.steps.pii  # noqa: F401
from data_pipeline.registry import entries
from data_pipeline.step_code import _belongs, _imports, code_hash


def write(directory: Path, **modules: str) -> None:
    directory.mkdir(exist_ok=True)
    for name, code in modules.items():
        (directory / f"{name}.py").write_text(code)


STEP = "def step(documents):\n    yield from documents\n"


def test_of_a_package_what_is_imported_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "package_of_steps"
    code = {"__init__": "", "words": "from package_of_steps.deep import low\nWORDS = low\n", "deep": "low = 1\n"}
    lazily = "def late():\n    import package_of_steps.late\n"
    write(
        package,
        **code,
        other="",
        late="x = 1\n",
        rules=f"from .words import WORDS\nfrom . import thing\n{lazily}{STEP}",
    )
    write(package / "thing", __init__="y = 1\n")
    found = [code_hash("package_of_steps.rules")]
    for place in ("words", "deep", "late", "thing/__init__", "rules"):
        with (package / f"{place}.py").open("a") as file:
            file.write("# another line\n")
        assert code_hash("package_of_steps.rules") not in found, place
        found.append(code_hash("package_of_steps.rules"))
    (package / "other.py").write_text("z = 1\n")
    assert code_hash("package_of_steps.rules") == found[-1], "nothing of it is used"
    assert entries(["package_of_steps.rules:step"])[0].record()[2] == found[-1]


def test_of_a_file_alone_those_beside_it_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory in ("mine", "site-packages", "elsewhere"):
        monkeypatch.syspath_prepend(str(tmp_path / directory))
    write(tmp_path / "elsewhere", far_helper="x = 1\n")
    for directory, changes in (("mine", True), ("site-packages", False)):
        helper, step = f"helper_{directory[:4]}", f"step_{directory[:4]}"
        write(tmp_path / directory, **{helper: "x = 1\n", step: f"import json, far_helper, {helper}\n{STEP}"})
        before = code_hash(step)
        write(tmp_path / directory, **{helper: "x = 2\n"})
        assert (code_hash(step) != before) == changes
    before = code_hash("step_mine")
    write(tmp_path / "elsewhere", far_helper="x = 2\n")
    assert code_hash("step_mine") == before


def test_of_ours_what_lies_among_the_steps_counts() -> None:
    step = "data_pipeline.steps.pii"
    counts = {name for name in sys.modules if _belongs(name, step, "")} | {step}
    assert {name.rpartition(".")[0] for name in counts} == {"data_pipeline.steps"}
    assert "data_pipeline.steps.digits" in _imports(step, find_spec(step).origin)  # type: ignore[union-attr, arg-type]


def test_what_python_cannot_read_counts_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, step_beside_old_code=f"try:\n    import old_code\nexcept SyntaxError:\n    pass\n{STEP}")
    write(tmp_path, old_code="print 'of another Python'\n")
    before = code_hash("step_beside_old_code")
    write(tmp_path, old_code="print 'edited'\n")
    assert code_hash("step_beside_old_code") != before


def test_what_has_no_file_has_no_hash() -> None:
    assert code_hash("sys") == ""
    assert code_hash("no_such_module_anywhere") == ""
