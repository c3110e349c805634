"""What of the project travels to a cluster: its code and example configs, and no other file of this machine.

An allow-list of names and kinds of files: what lies about in a working copy (data, runs, keys, a `.env`) stays here.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

from fmscale.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
"""Of the code that runs: a working copy, or site-packages."""
FOLDERS = ("launcher", "fmscale", "data_pipeline", "configs")
CONSTRAINTS = "constraints.txt"
FILES = ("pyproject.toml", CONSTRAINTS)
KINDS = frozenset({".py", ".yaml", ".yml"})

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def project_files(root: Path = ROOT) -> Iterator[Path]:
    """Relative paths, sorted; links are not followed."""
    for name in FILES:
        if (root / name).is_file() and not (root / name).is_symlink():
            yield Path(name)
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(root).parts)
            if path.suffix in KINDS and path.is_file() and not path.is_symlink() and not hidden:
                yield path.relative_to(root)


def copy_project(into: Path, root: Path = ROOT) -> None:
    """Copy what travels below `into`."""
    for path in project_files(root):
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, into / path)


def constraints_name(root: Path = ROOT) -> str:
    """Of a copy of constraints.txt, by its content."""
    return f"constraints-{hashlib.sha256((root / CONSTRAINTS).read_bytes()).hexdigest()[:8]}.txt"


def pinned(root: Path = ROOT) -> list[str]:
    """The dependencies of pyproject.toml, each at the version of constraints.txt: `torch==2.13.0`.

    Raises ConfigError where the project was installed without those files, or one of them is not pinned.
    """
    try:
        wanted = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
        constraints = (root / CONSTRAINTS).read_text().splitlines()
    except OSError as error:
        raise ConfigError(
            "the pinned environment is not known here",
            expected="pyproject.toml and constraints.txt beside the code",
            found=f"{error.filename}: {error.strerror}",
            do="submit from a working copy of fmscale, or with the cluster's own environment",
        ) from error
    versions = {
        _plain(line.partition("==")[0]): line.partition("==")[2].strip() for line in constraints if "==" in line
    }
    pins = []
    for requirement in wanted:
        name = _NAME.match(requirement)
        version = versions.get(_plain(name[0])) if name else None
        if name is None or version is None:
            raise ConfigError(
                "a dependency has no pinned version",
                expected=f"a line NAME==VERSION for it in {root / CONSTRAINTS}",
                found=requirement,
                do="pin it, or submit with the cluster's own environment",
            )
        extras = re.match(r"\[[^\]]*\]", requirement[name.end() :])
        pins.append(f"{name[0]}{extras[0] if extras else ''}=={version}")
    return pins


def _plain(name: str) -> str:
    """As package indexes compare names (PEP 503), extras left out."""
    return re.sub(r"[-_.]+", "-", name.partition("[")[0].strip()).lower()
