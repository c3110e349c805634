"""Settings: layering, and the mistakes users make, each with its message."""

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from fmscale.config import Config, from_yaml, load, to_yaml
from fmscale.errors import ConfigError
from fmscale.resume import MAY_CHANGE_ON_RESUME, check_resume
from fmscale.settings import flatten
from fmscale.validate import validate


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A directory that looks finished; `validate` looks at the marker, opening it is the shards' business."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.json").write_text("{}")
    return tmp_path / "corpus"


def config_of(corpus: Path, *overrides: str) -> Config:
    return load([], [f"data.sources.main.corpus={corpus}", *overrides])


def test_files_merge_left_to_right_and_arguments_last(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {steps: 5, global_batch: 8}\n")
    (tmp_path / "b.yaml").write_text("train: {steps: 6}\ndata: {sources: {web: {corpus: c, weight: 2}}}\n")
    config = load([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["train.micro_batch=2", "logging.wandb.mode=disabled"])
    assert (config.train.steps, config.train.global_batch, config.train.micro_batch) == (6, 8, 2)
    assert config.data.sources["web"].weight == 2
    assert config.logging.wandb.mode == "disabled"


def test_yaml_round_trip(corpus: Path) -> None:
    config = config_of(corpus, "optim.lr=1.25e-4", "schedule.kind=wsd")
    assert from_yaml(to_yaml(config)) == config


def test_shipped_configs_load() -> None:
    files = sorted(Path(__file__).parents[2].glob("configs/**/*.yaml"))
    assert files
    for file in files:
        if "data" not in file.parts:
            load([file])


RAMP = "train.batch_ramp=[{from_tokens: 1e6, global_batch: 16}"
STAGE = "data.stages=[{weights:"

MISTAKES = [
    (["train.stepz=3"], "unknown setting `train.stepz`", "steps"),
    (["trian.steps=3"], "unknown setting `trian`", "train"),
    (["train.steps=many"], "setting `train.steps` has a wrong value", "Integer"),
    (["engine=fast"], "setting `engine` has a wrong value", "engine"),
    (["launch.hang_s=600"], "a collective operation would give up before a hang is seen", "launch.timeout_s=1200"),
    (["launch.time_limit_s=60"], "the time limit leaves no time to train", "launch.grace_s"),
    (["launch.grace_s=0"], "launch.grace_s", "0"),
    (["launch.min_dp=-1"], "launch.min_dp is negative", "0 or a positive value"),
    (["launch.min_dp=1", "launch.elastic_wait_s=0"], "launch.elastic_wait_s is too small", "more than 0"),
    (
        ["launch.min_dp=3", "parallel.dp=2", "engine=zero"],
        "as many data-parallel ranks as it needs at least",
        "set launch.min_dp=2 or lower, or parallel.dp=3 or higher",
    ),
    (["launch.min_dp=1", "launch.backend=torchrun"], "only on Ray may a run go on with fewer", "launch.min_dp=0"),
    (["steps"], "an argument is neither a file nor a setting", "key=value"),
    (["train.steps=[1"], "value is not valid YAML", "quote"),
    (["run.name=${oc.env:HOME}"], "interpolation is switched off", "plain value"),
    (["run.name=../elsewhere"], "run.name is no plain name", "letters"),
    (
        ["train.global_batch=2", "parallel.dp=3", "engine=zero"],
        "fewer rows than there are data-parallel ranks",
        "parallel.dp=2",
    ),
    (["train.global_batch=8", "train.micro_batch=6", "parallel.dp=2"], "micro-batch is larger", "train.micro_batch=4"),
    (["parallel.zero=3", "parallel.pp=2", "engine=pipe"], "ZeRO 2 and 3 do not work in a pipeline", "parallel.zero=1"),
    (["parallel.zero=4"], "parallel.zero is no ZeRO stage", "0, 1, 2 or 3"),
    (["parallel.pp=2"], "pipeline stages need the pipeline engine", "engine=pipe"),
    (["parallel.pp=9", "engine=pipe"], "more pipeline stages than layers", "parallel.pp=4"),
    (["parallel.tp=2"], "tensor parallelism is not in this version", "parallel.dp"),
    (["model.n_heads=6"], "width does not divide into heads", "4 or 8"),
    (["model.n_kv_heads=3"], "query heads do not divide", "2 or 4"),
    (["train.steps=0"], "train.steps is too small", "more than 0"),
    (["schedule.warmup_steps=-1"], "schedule.warmup_steps is negative", "0 or more"),
    (["optim.lr=inf"], "optim.lr is not finite", "finite value"),
    (["model.norm_eps=-1"], "model.norm_eps is too small", "more than 0"),
    (["optim.beta1=1.5"], "optim.beta1 is out of range", "0 <= beta < 1"),
    (["optim.beta2=-1"], "optim.beta2 is out of range", "0 <= beta < 1"),
    (["schedule.final_lr_ratio=7"], "schedule.final_lr_ratio is out of range", "0 to 1"),
    (["data.seed=9223372036854775808"], "data.seed is out of range", "64-bit"),
    (["train.steps=10"], "never leave its warm-up", "schedule.warmup_steps=1"),
    (["schedule.kind=wsd", "schedule.decay_steps=950"], "warm-up and decay are longer than the run", "shorten"),
    (
        ["schedule.kind=wsd", "train.steps=120"],
        "warm-up and decay are longer than the run",
        "100 + 24 (0 means a fifth",
    ),
    (["checkpoint.fast_dir=/dev/shm"], "fast checkpoints need a directory and a number of steps", "fast_every_steps=0"),
    (["checkpoint.fast_every_steps=9"], "fast checkpoints need a directory and a number of steps", "fast_dir=none"),
    (["checkpoint.fast_dir=shm", "checkpoint.fast_every_steps=9"], "checkpoint.fast_dir is no absolute path", "from /"),
    (
        ["checkpoint.fast_dir=/dev/shm", "checkpoint.fast_every_steps=100"],
        "fast checkpoints would come no more often than the others",
        "set checkpoint.every_steps=1000",
    ),
    (["checkpoint.fast_dir=/dev/shm", "checkpoint.fast_every_steps=-1"], "fast_every_steps is negative", "0 or more"),
    (["checkpoint.keep=1"], "no predecessor to fall back to", "checkpoint.keep=2"),
    (["data.sources.main.weight=0"], "source `main` has an impossible weight", "leave the source out"),
    (
        ["train.steps=1000000000000000"],
        "the run has more rows than can be counted",
        "which is train.steps=2199023255552",
    ),
    (["train.steps=99999999999999999999"], "the run has more rows than can be counted", "train.steps=more than 2^66"),
    ([f"train.steps=1{'0' * 4000}"], "the run has more rows than can be counted", "rows\n  do: lower train.steps"),
    ([f"train.global_batch=1{'0' * 20}"], "global batch has more rows than can be counted", "found: more than 2^66"),
    ([f"train.global_batch=1{'0' * 400}"], "global batch has more rows than can be counted", "70,368,744,177,664"),
    (
        [f"{RAMP}, {{from_tokens: 1e12, global_batch: 1{'0' * 23}}}]"],
        "a global batch has more rows than can be counted",
        "set train.batch_ramp.1.global_batch",
    ),
    (
        ["train.global_batch=70368744177664", "train.steps=2", "schedule.warmup_steps=0"],
        "the run has more rows than can be counted",
        "which is train.steps=1 with",
    ),
    (
        [f"{STAGE} {{main: 1}}}}, {{from_tokens: 1e17, weights: {{main: 1}}}}]"],
        "data.stages.1 begins beyond all rows that can be counted",
        "from_tokens below 7.21e+16: 70,368,744,177,664 rows of 1024 tokens",
    ),
    (
        [f"{STAGE} {{main: 1}}}}, {{from_tokens: 1e300, weights: {{main: 1}}}}]"],
        "data.stages.1 begins beyond all rows that can be counted",
        "found: from_tokens=1e+300",
    ),
    (["data.seq_len=1000000000000000000"], "data.seq_len is out of range", "1 to 2,147,483,647 tokens"),
    (
        ["data.seq_len=1048576", "train.steps=200000000000"],
        "the run has more rows than can be counted",
        "at most 4,398,046,511,104 rows, which is train.steps=137438953472",
    ),
    (["data.window_chunks=1000000000000000000"], "data.window_chunks is out of range", "1 to 2,147,483,647 chunks"),
    (["data.stages=[{weights: [1, 2]}]"], "a setting is a list where a group", "found: data.stages in the argument"),
    (["data.sources={web: [1]}"], "a setting is a list where a group", "{KEY: value, ...} for groups"),
    (
        [f"{STAGE} {{main: {{a: 1}}}}}}]"],
        "setting `data.stages.0.weights.main` has a wrong value",
        "expected: a number\n  found: {'a': 1}",
    ),
    ([f"{STAGE} {{main: [1]}}}}]"], "setting `data.stages.0.weights.main` has a wrong value", "found: [1]"),
    ([f"{STAGE} {{main: 1e308}}}}]"], "data.stages.0 has no usable weights", "weights of 0 to 1e+15, some above 0"),
    (["data.sources.main.weight=1e308"], "source `main` has an impossible weight", "from 0 to 1e+15"),
    (["data.sources.main.weight=-1"], "source `main` has an impossible weight", "found: -1.0"),
    (["data.sources.main.max_epochs=1e308"], "source `main` has an impossible max_epochs", "at most 1e+09"),
    (["data.sources.main.weight=nan"], "data.sources.main.weight is not finite", "finite value"),
    (["data.sources.web.corpus=/nowhere"], "source `web` has no finished corpus", "prepare it"),
    (["data.sources.main.max_epochs=-1"], "source `main` has an impossible max_epochs", "0 for no limit"),
    (["data.sources.main.max_epochs=inf"], "data.sources.main.max_epochs is not finite", "finite value"),
    (["data.sources.main.beyond_max_epochs=maybe"], "`data.sources.main.beyond_max_epochs` has a wrong", "'repeat'"),
    (["data.bad_chunks=ignore"], "setting `data.bad_chunks` has a wrong value", "['fail', 'quarantine']"),
    (["data.bad_chunk_budget=-0.1"], "data.bad_chunk_budget is out of range", "0 to 1, a share"),
    (["data.bad_chunk_budget=3"], "data.bad_chunk_budget is out of range", "found: 3.0"),
    ([f"{RAMP}, {{from_tokens: 5e5, global_batch: 64}}]"], "entries of train.batch_ramp do not rise", "1e+06, 500000"),
    ([f"{RAMP}, {{from_tokens: 1e6, global_batch: 64}}]"], "entries of train.batch_ramp do not rise", "put them in"),
    (["train.batch_ramp=[{from_tokens: -1, global_batch: 8}]"], "entries of train.batch_ramp do not rise", "0 or more"),
    (["train.batch_ramp=[{from_tokens: 1e6}]"], "fewer rows than there are", "train.batch_ramp.0.global_batch=1 or"),
    (
        [f"{RAMP}]", "parallel.dp=20", "engine=zero", "train.micro_batch=1"],
        "fewer rows than there are data-parallel ranks",
        "set train.batch_ramp.0.global_batch=20 or parallel.dp=16",
    ),
    (
        ["train.global_batch=4", f"{RAMP}]", "train.micro_batch=20"],
        "micro-batch is larger than a rank's share",
        "16 / 1 = 16",
    ),
    (["train.batch_ramp=[{global_bach: 3}]"], "unknown setting `global_bach`", "did you mean `global_batch`?"),
    (["train.batch_ramp=[{global_batch: lots}]"], "setting `global_batch` has a wrong value", "Integer"),
    (["train.batch_ramp=5"], "setting `train.batch_ramp` is a list of settings", "found: 5 in the argument"),
    (["train.batch_ramp={from_tokens: 1}"], "setting `train.batch_ramp` is a list of settings", "all of its entries"),
    (["train.batch_ramp.0.global_batch=7"], "setting `train.batch_ramp` is a list of settings", "[{KEY: value, ...}"),
    (["data.seq_len_schedule=[{seq_len: 300}]"], "a sequence length does not divide the rows", "256 or 512"),
    (["data.seq_len_schedule=[{seq_len: 2048}]"], "a sequence length does not divide the rows", "seq_len=1024, the l"),
    (["data.seq_len_schedule=[{from_tokens: nan, seq_len: 512}]"], "seq_len_schedule.0.from_tokens is not", "finite"),
    (
        ["data.seq_len_schedule=[{from_tokens: 2, seq_len: 512}, {seq_len: 256}]"],
        "entries of data.seq_len_schedule do not rise",
        "found: 2, 0",
    ),
    ([f"{STAGE} {{main: 1, wiki: 2}}}}]"], "data.stages.0 has no usable weights", "of the sources main"),
    ([f'{STAGE} {{"a\\n\\n\\nb": 1}}}}]'], "data.stages.0 has no usable weights", "found: a b: 1"),
    ([f"{STAGE} {{main: 0}}}}]"], "data.stages.0 has no usable weights", "some above 0"),
    ([f"{STAGE} {{main: -1}}}}]"], "data.stages.0 has no usable weights", "found: main: -1"),
    (["data.stages=[{from_tokens: 9}]"], "data.stages.0 has no usable weights", "found: none"),
    (
        [f"{STAGE} {{main: 1}}, curve: linear}}]"],
        "data.stages.0 has a curve that leads nowhere",
        "curve=linear in",
    ),
    ([f"{STAGE} {{main: 1}}, curve: wavy}}]"], "setting `curve` has a wrong value", "['constant', 'linear', 'cosine']"),
    ([f"{STAGE} {{main: 1}}}}, {{weights: {{main: 1}}}}]"], "entries of data.stages do not rise", "found: 0, 0"),
    (
        ["data.sources.main.weight=0", "data.stages=[{from_tokens: 1, weights: {main: 1}}]"],
        "no source has weight at the run's start",
        "a stage with from_tokens=0",
    ),
    ([f"{STAGE} {{main: 1}}}}]", "data.sources.web.corpus=CORPUS"], "source `web` never has weight", "in some stage"),
]


@pytest.mark.parametrize(("overrides", "what", "remedy"), MISTAKES, ids=[m[1] for m in MISTAKES])
def test_a_mistake_is_one_clear_message(corpus: Path, overrides: list[str], what: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(config_of(corpus, *(override.replace("=CORPUS", f"={corpus}") for override in overrides)))
    text = str(caught.value)
    assert what in text
    assert remedy in text
    assert len(text.splitlines()) <= 6
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["a.b", "web/../x y", "a\nb", "x=y", "\u00e9", "a$\\foo$b", "", " web"])
def test_a_source_has_a_name_that_can_be_used_everywhere(corpus: Path, name: str) -> None:
    config = config_of(corpus)
    source = replace(config.data.sources["main"], weight=float("nan"))
    bad = replace(config, data=replace(config.data, sources={name: source}))
    with pytest.raises(ConfigError, match="a name that cannot be used everywhere") as caught:
        validate(bad)
    assert "expected: letters without accents, digits, `_` and `-`" in str(caught.value)
    assert f"data.sources: {name!r}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 4
    good = replace(config, data=replace(config.data, sources={"_a-B9": config.data.sources["main"]}))
    validate(good)


def test_the_longest_run_that_can_be_counted(corpus: Path) -> None:
    most = 2199023255552  # of 32 rows: 2^46
    validate(config_of(corpus, f"train.steps={most}"))
    with pytest.raises(ConfigError, match="rows"):
        validate(config_of(corpus, f"train.steps={most + 1}"))


SCHEDULES = """
data:
  sources: {web: {corpus: CORPUS, weight: 0, max_epochs: 1.5, beyond_max_epochs: repeat}}
  stages:
  - {from_tokens: 1e9, weights: {main: 2, web: 1}, curve: cosine}
  - {from_tokens: 2e9, weights: {web: 1}}
  seq_len_schedule: [{seq_len: 256}, {from_tokens: 1e6, seq_len: 1024}]
train: {batch_ramp: [{from_tokens: 1e6, global_batch: 64}]}
"""


def test_lists_of_settings_come_from_files_and_arguments_and_stay(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(SCHEDULES.replace("CORPUS", str(corpus)))
    main = f"data.sources.main.corpus={corpus}"
    given = load([tmp_path / "more.yaml"], [main, "train.batch_ramp=[{from_tokens: 2e6, global_batch: 96}]"])
    validate(given)
    assert [(stage.from_tokens, stage.weights, stage.curve) for stage in given.data.stages] == [
        (1e9, {"main": 2, "web": 1}, "cosine"),
        (2e9, {"web": 1}, "constant"),
    ]
    assert [(stage.from_tokens, stage.seq_len) for stage in given.data.seq_len_schedule] == [(0, 256), (1e6, 1024)]
    assert [(stage.from_tokens, stage.global_batch) for stage in given.train.batch_ramp] == [(2e6, 96)]
    assert from_yaml(to_yaml(given)) == given
    check_resume(given, from_yaml(to_yaml(given)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("train.batch_ramp=[{from_tokens: 1e6, global_batch: 65}]", "train.batch_ramp.0.global_batch: 64 -> 65"),
        ("train.batch_ramp=[]", "train.batch_ramp.0.global_batch: 64 -> absent"),
        ("data.seq_len_schedule=[{seq_len: 512}]", "data.seq_len_schedule.0.seq_len: 256 -> 512"),
        ("data.stages=[{weights: {main: 1, web: 1}}]", "data.stages.0.curve: cosine -> constant"),
        ("data.sources.web.weight=1", "data.sources.web.weight: 0.0 -> 1.0"),
        ("data.packing=best_fit", "data.packing: concat -> best_fit"),
        ("data.bad_chunks=quarantine", ""),
        ("data.bad_chunk_budget=0.5", ""),
        ("data.sources.web.max_epochs=3", ""),
        ("data.sources.web.beyond_max_epochs=refuse", ""),
    ],
)
def test_what_a_resume_may_change_of_the_order(corpus: Path, tmp_path: Path, change: str, told: str) -> None:
    (tmp_path / "more.yaml").write_text(SCHEDULES.replace("CORPUS", str(corpus)))
    old, new = (
        load([tmp_path / "more.yaml"], [f"data.sources.main.corpus={corpus}", *more]) for more in ([], [change])
    )
    if not told:
        check_resume(old, new)
        return
    with pytest.raises(ConfigError) as caught:
        check_resume(old, new)
    assert told in str(caught.value)
    of_the_mix = change.startswith(("data.stages", "data.sources"))
    assert ("`fmscale order edit RUN weights|stages|source` for the mix" in str(caught.value)) == of_the_mix
    assert len(str(caught.value).splitlines()) <= 6


def test_a_fifth_of_decay_after_the_warm_up_is_accepted(corpus: Path) -> None:
    validate(config_of(corpus, "schedule.kind=wsd", "train.steps=125"))
    validate(config_of(corpus, "schedule.kind=cosine", "train.steps=120"))


GROUPS = [
    ("parallel=3", "setting `parallel` is a group of settings", "parallel.KEY=value, KEY one of dp, pp, tp, zero"),
    (
        "parallel=null",
        "setting `parallel` is a group of settings",
        "found: parallel=None in the argument parallel=null",
    ),
    ("train=[1,2]", "setting `train` is a group of settings", "train.KEY=value, KEY one of steps"),
    ("logging.wandb=off", "setting `logging.wandb` is a group of settings", "KEY one of mode, project"),
    ("data.sources=3", "setting `data.sources` is a group of settings", "data.sources.NAME.KEY=value"),
    ("data.sources.web=3", "setting `data.sources.web` has a wrong value", "expected: a group of settings"),
    ("data.sources.web.weight=2", "setting `data.sources.web.corpus` has no value", "set data.sources.web.corpus=..."),
]


@pytest.mark.parametrize(("override", "what", "detail"), GROUPS, ids=[g[0] for g in GROUPS])
def test_groups_and_missing_values_are_told_in_the_users_words(override: str, what: str, detail: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([], [override])
    text = str(caught.value)
    assert text.startswith(what)
    assert detail in text
    assert len(text.splitlines()) <= 6


def test_no_sources() -> None:
    with pytest.raises(ConfigError, match="no data to train on"):
        validate(load([]))


def test_world_size(corpus: Path) -> None:
    config = config_of(corpus, "parallel.dp=2", "engine=zero")
    validate(config, world_size=2)
    with pytest.raises(ConfigError, match=r"number of ranks does not fit(?s:.*)parallel\.dp=3"):
        validate(config, world_size=3)


def test_config_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a config file is missing"):
        load([tmp_path / "absent.yaml"])
    with pytest.raises(ConfigError, match="is a directory"):
        load([tmp_path])
    (tmp_path / "broken.yaml").write_text("train: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load([tmp_path / "broken.yaml"])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds no settings"):
        load([tmp_path / "list.yaml"])


def test_environment_stays_out_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "secret-4711")
    (tmp_path / "evil.yaml").write_text("logging: {wandb: {project: '${oc.env:CANARY}'}}\n")
    with pytest.raises(ConfigError) as caught:
        load([tmp_path / "evil.yaml"])
    assert "secret-4711" not in str(caught.value)


def test_resume_refuses_a_change_of_identity_and_allows_topology(corpus: Path) -> None:
    old = config_of(corpus)
    check_resume(old, replace(old, engine="zero", train=replace(old.train, micro_batch=2, steps=2000)))
    changed = replace(old, data=replace(old.data, seed=7), optim=replace(old.optim, lr=0.5))
    with pytest.raises(ConfigError) as caught:
        check_resume(old, changed)
    assert str(caught.value).startswith("this run exists with other settings (2 may not change on resume)")
    assert "data.seed: 0 -> 7" in str(caught.value)
    assert "optim.lr: 0.001 -> 0.5" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


def test_the_documented_table_of_resumable_settings_is_the_codes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "config.md").read_text()
    table = text.split("## What a resumed run may change")[1].split("Everything else")[0]
    documented = {
        word
        for line in table.splitlines()
        for word in re.findall(r"`([\w.*]+)`", line.split("|")[1:2][0] if "|" in line else "")
    }
    assert documented == set(MAY_CHANGE_ON_RESUME)


def test_every_resumable_pattern_names_a_setting() -> None:
    keys = [key for key, _ in flatten(load([], ["data.sources.web.corpus=c"]))]
    assert [p for p in MAY_CHANGE_ON_RESUME if not any(fnmatchcase(key, p) for key in keys)] == []
