"""What a job takes along: one config with absolute paths, plain arguments, and nothing that only Slurm knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmscale.config import from_yaml
from fmscale.errors import ConfigError
from launcher.jobs.shipped import CONFIG, gigabytes, label, plain_command, require_places, require_shared, shipped
from launcher.jobs.spec import Container, Site
from tests.job_specs import HOSTILE, spec_of


def test_files_and_settings_become_one_config_and_options_stay(tmp_path: Path) -> None:
    arguments = ("train", "tiny.yaml", "--roll-back", "step-00000004.t0001", "run.root=runs", "--take-over")
    arguments += ("data.sources.words.corpus=data/words", "checkpoint.fast_dir=/dev/shm/fast")
    load = shipped(spec_of(tmp_path, arguments=arguments))
    assert load.arguments == ("train", CONFIG, "--roll-back", "step-00000004.t0001", "--take-over")
    assert load.with_config_at("/x.yaml")[1] == "/x.yaml"
    config = from_yaml(load.text)
    assert config == load.config
    assert config.run.root == str(tmp_path / "runs")
    assert config.data.sources["words"].corpus == str(tmp_path / "data/words")
    assert config.checkpoint.fast_dir == "/dev/shm/fast"
    assert config.model.d_model == 32
    assert load.stop_s == 90


def test_other_commands_travel_as_they_are(tmp_path: Path) -> None:
    load = shipped(spec_of(tmp_path, arguments=("data", "prepare", "/shared/web.yaml", "output=/shared/web")))
    assert load.config is None
    assert load.text == ""
    assert load.arguments == ("data", "prepare", "/shared/web.yaml", "output=/shared/web")


def test_a_setting_that_cannot_be_is_refused_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train\\.stepss"):
        shipped(spec_of(tmp_path, "mine", "train.stepss=3"))


def test_what_only_slurm_can_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="have a time limit of their own") as refused:
        shipped(spec_of(tmp_path, time_limit="1-00:00:00"))
    assert "launch.time_limit_s" in str(refused.value)
    with pytest.raises(ConfigError, match="ranks without Ray are Slurm's alone"):
        shipped(spec_of(tmp_path, ranks="srun"))
    site = Site(partition="gpu", gpu_type="H100", container=Container(kind="pyxis", image="x"))
    with pytest.raises(ConfigError, match="no use for") as refused:
        shipped(spec_of(tmp_path, site=site))
    assert "found: partition, gpu_type, container" in str(refused.value)
    with pytest.raises(ConfigError, match="no use for") as refused:
        shipped(spec_of(tmp_path, site=site), facts=("python", "gpu_type"))
    assert "found: partition, container" in str(refused.value)


def test_a_job_too_small_for_its_ranks_is_refused(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "mine", "parallel.dp=17", nodes=2, gpus_per_node=8)
    with pytest.raises(ConfigError, match="fewer places than the run has ranks") as refused:
        require_places(spec, shipped(spec).config)
    assert "2 nodes x 8 GPUs" in str(refused.value)
    fits = spec_of(tmp_path, "mine", "parallel.dp=16", nodes=2, gpus_per_node=8)
    require_places(fits, shipped(fits).config)


def test_paths_outside_the_shared_storage_are_refused(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    config = shipped(spec).config
    require_shared(spec, config, ["/shared"], "a disk")
    for below, key in ((["/shared/runs"], "data.sources.words.corpus"), (["/other", "/shared"], "run.root")):
        with pytest.raises(ConfigError, match="not on storage that all nodes share") as refused:
            require_shared(spec, config, below, "a disk")
        assert f"expected: {key} below" in str(refused.value)


@pytest.mark.parametrize("argument", ["a b", "it's", HOSTILE, "$HOME", "a;b", "a\nb", "*", "~", "{a,b}", ""])
def test_no_argument_that_a_shell_would_read_otherwise(argument: str) -> None:
    with pytest.raises(ConfigError, match="an argument cannot be handed to this launcher"):
        plain_command(["fmscale"], ["train", argument])
    assert plain_command(["fmscale"], ["train", "--x=1,2", "a/b.yaml"]) == "fmscale train --x=1,2 a/b.yaml"


def test_memory_is_read_in_three_units() -> None:
    assert [gigabytes(text) for text in ("64G", "65536M", "1t")] == [64, 64, 1024]
    for text in ("", "64", "64GB", "-1G", "512M"):
        with pytest.raises(ConfigError, match="the memory of a node is no size"):
            gigabytes(text)


def test_names_become_labels() -> None:
    assert label("My_Run.7") == "my-run-7"
    assert label("124m") == "run-124m"
    assert label(HOSTILE) == "touch-canary-touch-canary-touch-canary"
    assert label("!!") == "run"
    assert len(label("a" * 99)) == 40
