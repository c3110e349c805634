"""The house stays as docs/layout.md draws it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("launcher", "data_pipeline", "fmscale")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) if path.stem != "__init__"]


def test_the_layout_lists_every_file_once() -> None:
    layout = (ROOT / "docs" / "layout.md").read_text().split("```")[1]
    listed: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in layout.splitlines():
        match = re.match(r"( *)([\w./]+)", line)
        if not match:
            continue
        indent, name = len(match[1]), match[2]
        folders = [(i, folder) for i, folder in folders if i < indent]
        if name.endswith("/"):
            folders.append((indent, name))
        else:
            listed.append("".join(folder for _, folder in folders) + name)
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in MODULES)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_opens_with_what_it_decides_and_stays_short(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module begins with a docstring"
    assert len(text.splitlines()) <= 300, "past 300 lines there is a second noun in it"


def test_no_unsafe_loading() -> None:
    forbidden = ("weights_only=False", "pickle.load", "yaml.load(", "shell=True", "allow_pickle=True", "os.system")
    found = [f"{path.name}: {word}" for path in MODULES for word in forbidden if word in path.read_text()]
    assert found == []


def test_heavy_libraries_are_imported_in_few_modules() -> None:
    homes = {
        "ray": {
            *("drain.py", "driver.py", "group.py", "members.py", "placement.py", "ranks.py", "ray_api.py"),
            *("ray_cluster.py", "ray_join.py", "readers.py", "workers.py"),
        },
        "deepspeed": {"deepspeed_start.py", "engine_zero.py", "engine_pipe.py"},
        "wandb": {"sinks.py"},
        "webdataset": {"writer.py"},
        "sentencepiece": {"tokenizer.py", "tokenizer_training.py", "foreign_tokenizer.py"},
    }
    for library, allowed in homes.items():
        pattern = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
        importing = {path.name for path in MODULES if pattern.search(path.read_text())}
        assert importing <= allowed, library
