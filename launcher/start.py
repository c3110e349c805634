"""Behind `fmscale train`: check everything that can be checked without starting anything, then start it.

    plan(config)     what would be trained, as text; writes nothing
    start(config)    train to the last step, or say that it is done

Under the user's own torchrun (RANK is set) this process is one rank; otherwise it supervises the run.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmscale.config import Config
from fmscale.corpus.ledger import FILE_NAME, Ledger
from fmscale.corpus.mix import ReadingPlan, reading_plan, require_epochs
from fmscale.corpus.order import Order
from fmscale.corpus.sources import RunData, open_run_data, resolve, without_added
from fmscale.corpus.stages import never_held
from fmscale.durable import replace
from fmscale.errors import CheckpointError, ConfigError
from fmscale.observe.metrics import last_step, summary
from fmscale.training import records
from fmscale.training.lease import Lease
from fmscale.training.past import require_ledger, require_order, require_untrained
from fmscale.validate import validate
from fmscale.validate_sources import check_source
from launcher.driver_process import die_with_parent
from launcher.edits import trained_last
from launcher.interface import own_address, socket_environment
from launcher.snapshot import changes, enter
from launcher.supervise import finished, supervise


def check(config: Config) -> Config:
    """`config` with what its corpora know filled in. Raises ConfigError or DataError."""
    world = int(os.environ.get("WORLD_SIZE", "1")) if _is_rank(config) else None
    begun_with = without_added(config, Ledger.load(config.run_dir / FILE_NAME))
    validate(begun_with, world)
    for name in sorted(config.data.sources.keys() - begun_with.data.sources.keys()):  # an edit added these
        check_source(name, config.data.sources[name])
    return resolve(config)


def open_run(config: Config, roll_back: str = "", note: Callable[[str], None] | None = None) -> RunData:
    """The corpora and the order of a run. Raises what a start would, unless the run that is there, if any, can go on by
    these settings and its ledger.

    roll_back: from that checkpoint. note: is told, in place of an error, of an edit that holds after a roll-back only.
    """
    changes(config)
    # Before the ledger, which is saved before any checkpoint that holds it: a run may be going on.
    elsewhere = roll_back and config.checkpoint.remote and not (config.run_dir / "checkpoints" / roll_back).exists()
    commit = None if elsewhere else trained_last(config.run_dir, roll_back)
    data = open_run_data(config)
    if commit is not None:
        require_ledger(commit, data.ledger)
        require_order(commit, data)
        try:
            require_untrained(commit, data.ledger)
        except CheckpointError as error:
            if note is None:
                raise
            note(" ".join(str(error).split()))
    return data


def plan(config: Config, roll_back: str = "") -> str:
    """The resolved plan of a run: model, data, steps, ranks."""
    from fmscale.observe.flops import parameter_count

    config = check(config)
    data = open_run(config, roll_back)
    reading, train = reading_plan(config, data), config.train
    first, unit = data.order.steps.step(1), data.order.row_tokens
    dp = f"dp {config.parallel.dp}" + (f", {config.launch.min_dp} at least," if config.launch.min_dp else "")
    sequences = f" in sequences of {first.seq_len}" if first.seq_len != unit else ""
    lines = [
        f"run       {config.run_dir}, at step {max(0, last_step(config.run_dir))} of {config.train.steps}",
        f"model     {parameter_count(config.model):,} parameters, vocabulary {config.model.vocab_size:,}",
        *_work(config, data.order, reading),
        f"batch     {first.rows} rows x {unit} tokens{sequences}, {train.micro_batch} rows a forward",
        *(f"          from step {step:,}: {what} {value:,}" for what, step, value in reading.schedule),
        f"ranks     {config.world_size} ({dp} x pp {config.parallel.pp}), engine {config.engine}",
    ]
    for number, source in enumerate(reading.sources):
        path = data.train[source.name].path
        lines.append(f"source    {source.name}: {source.tokens:,} tokens, {source.epochs:.2f} epochs of {path}")
        if cut := data.order.tokens_cut_per_epoch(number):
            lines.append(f"          {cut:,} tokens an epoch at chunks' ends are cut: data.seq_len divides no chunk")
    if len(reading.stages) > 1:
        lines.append(f"stages    {len(reading.stages)}: `fmscale data mix` shows them")
    return "\n".join(lines + [f"note      {note}" for note in _notes(config, data, reading)])


def _notes(config: Config, data: RunData, reading: ReadingPlan) -> list[str]:
    """What the plan does that may not be meant. Raises ConfigError for a source that would be read too often."""
    rows = reading.tokens // data.order.row_tokens
    return never_held(config.data, data.order.steps, rows) + require_epochs(config, reading)


def _tell_notes(config: Config) -> None:
    data = open_run_data(config)
    for note in _notes(config, data, reading_plan(config, data)):
        print(note)


def _work(config: Config, order: Order, reading: ReadingPlan) -> list[str]:
    """Tokens and FLOPs of the run, and the arithmetic for each sequence length in turn."""
    from fmscale.observe.flops import explain, flops_per_token

    changes = [(step, value) for what, step, value in reading.schedule if what == "sequence length"]
    lengths = [(1, order.steps.step(1).seq_len), *changes]
    ends = [*(step for step, _ in changes), reading.steps + 1]
    total, lines = 0, []
    for (step, length), end in zip(lengths, ends, strict=True):
        tokens = (order.steps.rows_after(end - 1) - order.steps.rows_after(step - 1)) * order.row_tokens
        total += tokens * flops_per_token(config.model, length)
        lines.append(f"          {tokens:,} tokens x {explain(config.model, length)}")
    return [f"work      {reading.tokens:,} tokens, {total:.3g} FLOPs", *lines]


def start(config: Config, roll_back: str | None = None, take_over: bool = False, store: Any = None) -> None:
    """Train `config` to its last step and leave summary.json in the run directory.

    store: where the ranks meet, if this process is one and the environment does not say it.
    """
    config = check(config)
    if _is_rank(config):
        _be_a_rank(config, roll_back, store)
        return
    summary_file = config.run_dir / "summary.json"
    if not roll_back and finished(config):
        changes(config)
        if not summary_file.exists() or json.loads(summary_file.read_text())["steps"] != last_step(config.run_dir):
            write_summary(config.run_dir, {"vocab_size": config.model.vocab_size})
        print(
            f"run {config.run_dir} is done: {config.train.steps} steps. More with train.steps=N, anew with run.name=NEW"
        )
        return
    if records.lacking(config):
        with Lease(config.run_dir).held(take_over=take_over):
            records.bring_back(config)
        config = check(config)
    _tell_notes(config)
    supervise(config, roll_back, take_over)
    write_summary(config.run_dir, {"vocab_size": config.model.vocab_size})
    print(f"done: {summary_file}; steps with `fmscale runs show {config.run_dir}`")


def write_summary(run_dir: Path, more: dict[str, Any]) -> dict[str, Any]:
    """summary.json: the totals of the run's metrics and `more`; returns them."""
    totals = summary(run_dir)
    totals = {"steps": totals["step"], **totals, **more}
    replace(run_dir / "summary.json", (json.dumps(totals, indent=1) + "\n").encode())
    return totals


def _is_rank(config: Config) -> bool:
    return config.launch.backend == "torchrun" and "RANK" in os.environ


def meet_over_the_right_interface() -> str:
    """The address of this host that other hosts of the run reach, whose interface gloo and NCCL are told to use unless
    the user has told them; empty: all ranks are here, and talk over the loopback. Raises as `own_address` does."""
    alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    address = "" if alone else own_address(interface=chosen, towards=os.environ.get("MASTER_ADDR", ""))
    for name, value in socket_environment(address or "127.0.0.1").items():
        os.environ.setdefault(name, value)
    return address


def _be_a_rank(config: Config, roll_back: str | None, store: Any) -> None:
    from fmscale.corpus.loader import LocalLoader
    from fmscale.training.place import place_from_environment
    from fmscale.training.worker import guarded, run_rank

    if roll_back:
        raise ConfigError(
            "a roll-back is started by `fmscale train`, not under torchrun",
            expected="--roll-back without RANK in the environment",
            found=f"RANK={os.environ['RANK']}",
            do="run `fmscale train ... --roll-back NAME` without torchrun; launch.backend=torchrun is fine",
        )
    die_with_parent()  # torchrun's agent does not take its ranks along when it is killed
    with guarded(config.run_dir, int(os.environ["RANK"])):
        place = place_from_environment(config)
        place = dataclasses.replace(place, store=store, address=meet_over_the_right_interface())
        if place.rank:
            run_rank(config, place, LocalLoader)
            return
        with Lease(config.run_dir).held():
            if records.lacking(config):
                records.bring_back(config)
            enter(config)
            _tell_notes(config)
            run_rank(config, place, LocalLoader)
            write_summary(config.run_dir, {"vocab_size": config.model.vocab_size})
