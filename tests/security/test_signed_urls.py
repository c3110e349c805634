"""S7: a signed URL is a secret. It is in no file below the output, while a preparation runs, when it was killed, at its
end; nor in what is said. Killed, the work goes on with fresh signatures, from what was done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.pipeline import Recipe
from data_pipeline.run import prepare
from fmscale.corpus.manifest import Manifest
from tests.raw_text import unlike
from tests.web_server import Site, web_server
from tests.word_corpora import GOLDEN

SECRET = "5eeded-canary-4711"
RUN = "import sys; from data_pipeline.pipeline import load_recipe; from data_pipeline.run import prepare\n"
RUN += "prepare(load_recipe([sys.argv[1]]), workers=0)"
FILES = 4


@pytest.fixture
def site() -> Iterator[Site]:
    with web_server() as site:
        for number in range(FILES):
            lines = [{"id": f"d{100 * number + place}", "text": unlike(100 * number + place)} for place in range(100)]
            site.files[f"raw/{number}.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines).encode()
        yield site


def recipe(site: Site, output: Path, signature: str, **changes: object) -> Recipe:
    inputs = [
        site.url(f"raw/{number}.jsonl?X-Amz-Signature={SECRET}-{signature}&token={SECRET}") for number in range(FILES)
    ]
    sizes = {"chunk_tokens": 512, "task_bytes": 1, "heldout_fraction": 0.1, "keep_dropped": True, **changes}
    return Recipe(inputs=inputs, output=str(output), tokenizer=str(GOLDEN / "tokenizer.model"), **sizes)  # type: ignore[arg-type]


def leaks(directory: Path) -> list[str]:
    """Names and contents below `directory` that hold the secret."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if SECRET in str(path) or SECRET.encode() in path.read_bytes()]


def test_no_file_holds_one_and_a_killed_preparation_goes_on(site: Site, tmp_path: Path) -> None:
    output, settings = tmp_path / "c", tmp_path / "secret.yaml"

    def run(signature: str) -> tuple[int, str]:
        body = {**vars(recipe(site, output, signature, steps=["tests.raw_text:deadly_once"]))}
        settings.write_text(json.dumps(body))  # JSON is YAML
        environment = {**os.environ, "DEATHS": str(tmp_path / "death")}
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(settings)], env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    code, said = run("first")
    assert code == -9, said
    assert leaks(output) == []
    assert SECRET not in said
    done = {path.name for path in output.glob(".work/*/scan-0-*")}
    assert done == {"scan-0-00000.npz", "scan-0-00001.npz"}

    # The first signature has run out by now.
    site.fate = lambda number, method, path: 403 if f"{SECRET}-first" in site.requests[number - 1][1] else None
    site.requests.clear()
    code, said = run("second")
    assert code == 0, said
    assert leaks(output) == []
    assert SECRET not in said
    read = {path.partition("?")[0] for method, path, asked in site.requests if method == "GET" and asked}
    assert read == {"/raw/2.jsonl", "/raw/3.jsonl"}, "what was done is not read again"
    assert Manifest.load(output).counts["in"] == 100 * FILES


def test_one_that_runs_out_while_tasks_run_is_not_repeated(site: Site, tmp_path: Path) -> None:
    """A damaged input stands in the manifest, with what the server said of it."""
    site.fate = lambda number, method, path: 403 if path == "raw/2.jsonl" and method == "GET" else None
    manifest = prepare(recipe(site, tmp_path / "c", "first", max_bad_input=0.5), workers=0)
    (lost,) = manifest.counts["quarantined"]
    assert lost["file"] == "2.jsonl"
    assert "403" in lost["found"]
    assert leaks(tmp_path / "c") == []


def test_workers_of_ray_have_them_from_memory(site: Site, tmp_path: Path) -> None:
    import ray

    context = ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        prepare(recipe(site, tmp_path / "c", "first"), workers=1)
        assert leaks(tmp_path / "c") == []
        session = Path(context.address_info["session_dir"])
        assert leaks(session / "logs") == []
    finally:
        ray.shutdown()
