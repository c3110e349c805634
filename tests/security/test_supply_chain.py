"""S12: what is installed is pinned, and nothing is fetched that runs."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [
    path for folder in ("launcher", "data_pipeline", "fmscale", "benchmarks") for path in (ROOT / folder).rglob("*.py")
]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_that_is_installed_is_pinned_to_the_version() -> None:
    """Ours and all that they bring: `make install` takes no other."""
    assert all(re.fullmatch(r"[\w.]+(\+[\w.]+)?", version) for version in PINS.values())
    pinned = {_plain(name) for name in PINS}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    wanted = [_plain(re.split(r"[\[<>=!~ ;]", each)[0]) for each in wanted]
    assert sorted(set(wanted) - pinned - {"fasttext-predict"}) == [] or set(wanted) <= pinned
    for name in project["dependencies"]:
        assert _plain(re.split(r"[\[<>=!~ ;]", name)[0]) in pinned, name
    assert "-c constraints.txt" in (ROOT / "Makefile").read_text()


def test_what_runs_here_is_what_is_pinned() -> None:
    for name in ("torch", "deepspeed", "ray", "webdataset", "wandb", "omegaconf", "safetensors", "sentencepiece"):
        assert metadata.version(name).partition("+")[0] == {_plain(n): v for n, v in PINS.items()}[name]


def test_no_code_of_others_is_fetched_or_trusted() -> None:
    fetched = r"trust_remote_code\s*=\s*True|torch\.hub|hf_hub_download|snapshot_download|urlretrieve"
    forbidden = rf"{fetched}|(?<![.\w])(?<!def )(eval|exec)\("
    found = [f"{path.name}: {match[0]}" for path in SOURCES for match in re.finditer(forbidden, path.read_text())]
    assert found == []
    scripts = [ROOT / "Makefile", ROOT / ".ci" / "run"]
    assert not [path for path in scripts if re.search(r"(curl|wget)[^\n]*\|\s*(ba)?sh", path.read_text())]


def test_ray_is_new_enough_for_its_token() -> None:
    """ShadowRay (CVE-2023-48022): before 2.52 Ray has no token at all."""
    assert tuple(int(part) for part in metadata.version("ray").split(".")[:2]) >= (2, 60)
