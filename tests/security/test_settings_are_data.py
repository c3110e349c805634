"""S6, S7: settings hold plain values. They read no environment, name no code, and take no secrets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.pipeline import check, load_recipe
from fmscale.config import load, to_yaml
from fmscale.errors import ConfigError
from tests.security.canary import nothing_runs, refused
from tests.word_corpora import tokenizer

SECRET = "seeded-4711-canary"


@pytest.mark.parametrize("reader", [load, load_recipe])
@pytest.mark.parametrize(
    "line",
    [
        "{key}: ${{oc.env:CANARY}}",
        "{key}: ${{oc.decode:${{oc.env:CANARY}}}}",
        "{key}: ${{oc.create:x}}",
        "{key}: x${{env:CANARY}}y",
        "{key}: !!python/object/apply:os.system ['touch {canary}']",
        "{key}: !!python/name:os.system",
        "_target_: os.system\ncommand: touch {canary}",
        "{key}: {{_target_: os.system, command: touch {canary}}}",
        "{key}: &a [*a]",
    ],
)
def test_a_file_that_would_do_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Callable[..., Any], line: str
) -> None:
    monkeypatch.setenv("CANARY", SECRET)
    canary, file = tmp_path / "canary", tmp_path / "evil.yaml"
    group, key = ("run: {{", "name") if reader is load else ("", "output")
    text = line.format(key=key, canary=canary)
    file.write_text(f"run:\n  {text}\n" if group and not text.startswith("_target_") else f"{text}\n")
    with nothing_runs(canary):
        assert SECRET not in refused(lambda: reader([file]), ConfigError)


@pytest.mark.parametrize(
    "step", ["os:system", "subprocess:run", "builtins:exec", "os:popen", "importlib:import_module"]
)
def test_a_recipe_names_steps_and_no_other_functions(tmp_path: Path, step: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer().model)
    recipe = f"inputs: [a.txt]\noutput: x\ntokenizer: {tmp_path}/tokenizer.model\nsteps: ['{step}']\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    with nothing_runs(tmp_path / "canary"):
        assert "is no step" in refused(lambda: check(load_recipe([tmp_path / "recipe.yaml"])), ConfigError)


@pytest.mark.parametrize(
    "key",
    [
        *("WANDB_API_KEY", "logging.wandb.api_key", "wandb.apikey", "aws.secret_access_key", "checkpoint.token"),
        *("hub.HF_TOKEN", "remote.password", "s3.AWS_ACCESS_KEY", "credentials", "run.client_secret"),
    ],
)
def test_a_secret_among_the_settings_is_refused_and_not_repeated(tmp_path: Path, key: str) -> None:
    said = refused(lambda: load([], [f"{key}={SECRET}"]), ConfigError)
    assert "a secret is no setting" in said
    assert SECRET not in said
    nested = SECRET
    for part in reversed(key.split(".")):
        nested = f"{{{part}: {nested}}}"
    (tmp_path / "config.yaml").write_text(nested)
    said = refused(lambda: load([tmp_path / "config.yaml"]), ConfigError)
    assert f"{key}, whose value is not repeated here" in said
    assert SECRET not in said
    assert len(said.splitlines()) <= 6


def test_no_setting_of_ours_looks_like_a_secret() -> None:
    from fmscale.settings import _SECRET, flatten

    assert [key for key, _ in flatten(load([])) if _SECRET.search(key)] == []
    assert "${" not in to_yaml(load([]))
