"""One rank of a run, from process start to the last step; the same under Ray, torchrun and srun.

    python -m fmscale.training.worker RUN_DIR      # under torchrun: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_* are set

It pins threads, joins the process group, agrees with its peers on a checkpoint (rank 0 proposes, each rank hashes what
it will read), opens a new term, loads and trains. It decides nothing about data: that is arithmetic.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from fmscale.config import Config, from_yaml
from fmscale.corpus.loader import Loader, LocalLoader
from fmscale.corpus.sources import RunData, open_run_data
from fmscale.errors import FmscaleError, MachineError, StopRequested
from fmscale.observe import failure, pids
from fmscale.observe.faults import fault_point
from fmscale.observe.heartbeat import Heartbeat
from fmscale.observe.recorder import Recorder
from fmscale.topology import Topology
from fmscale.training.agree import agree_on_checkpoint
from fmscale.training.calling_off import may_be_called_off
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import Commit
from fmscale.training.contacts import Contacts
from fmscale.training.engine import build_engine
from fmscale.training.fast_tier import FastTier
from fmscale.training.feed import Feed
from fmscale.training.lease import Lease
from fmscale.training.meeting import join, leave
from fmscale.training.past import require_past
from fmscale.training.place import RankPlace, place_from_environment, prepare_process
from fmscale.training.remote_store import RemoteStore
from fmscale.training.saver import Saver
from fmscale.training.stopping import Stopping
from fmscale.training.trainer import Position, Trainer
from fmscale.training.upload import Uploader
from fmscale.training.waiting import AHEAD, wait_for_word

MakeLoader = Callable[..., Loader]


def run_rank(config: Config, place: RankPlace, make_loader: MakeLoader) -> None:
    """Train from the newest valid checkpoint to the last step.

    Raises FmscaleError for what a user can mend, StopRequested if the run was asked to stop before.
    """
    # The guard is inside: what ends this rank is written down before anything is cleared up, which may block.
    with contextlib.ExitStack() as stack, guarded(config.run_dir, place.rank):
        device = prepare_process(config, place)
        pids.register(config.run_dir, "rank", place.rank)
        heart = stack.enter_context(Heartbeat(config.run_dir, place.rank, world=place.world))
        stopping = stack.enter_context(Stopping(config.run_dir, place.rank, config.launch))
        stack.push(leave)
        topology = Topology(dp=config.parallel.dp, pp=config.parallel.pp)
        with may_be_called_off(config.run_dir, os.environ.get("FMSCALE_INCARNATION", ""), place.store):
            control = join(config, place, device)
            stack.enter_context(Contacts(place, control, config.launch.timeout_s))
            data = open_run_data(config)
            _require_one_ledger(data, place, control)
            fault_point("engine.start", place.rank)
            engine = build_engine(config, topology, place.rank, device)
        stack.callback(engine.close)
        store = CheckpointStore(config.run_dir / "checkpoints")
        fast = FastTier.of(config, store, place.rank, control)
        reader = agree_on_checkpoint(config, store, place.rank, place.world, control, list(engine.wanted()), fast)
        commit = reader.commit if reader is not None else None
        term = _open_term(config, commit, fast, place, control)
        if reader is not None:
            require_past(reader.commit, data)
            engine.load_fragments(reader.read)
            engine.optimizer_steps = reader.state["optimizer_steps"]
            reader.close()
        position = Position(term=term, step=commit.step if commit else 0, rows=commit.rows if commit else 0)
        loader = make_loader(config=config, data=data, data_rank=topology.data_rank(place.rank))
        stack.callback(loader.close)
        recorder = None
        if place.rank == 0:
            recorder = stack.enter_context(Recorder(config, term, device, console=place.shows_progress))
        feed = Feed(
            config=config,
            topology=topology,
            rank=place.rank,
            loader=loader,
            data=data,
            control=control,
            term=term,
            heart=heart,
            stopping=stopping,
            recorder=recorder,
        )
        saver = Saver(
            config.checkpoint,
            store,
            engine.fragments,
            rank=place.rank,
            term=term,
            parent=commit.name if commit else None,
            step=position.step,
            device=device,
            control=control,
            heart=heart,
            recorder=recorder,
            timeout_s=config.launch.timeout_s,
            fast=fast,
        )
        stack.callback(saver.close)
        if config.checkpoint.remote:
            stack.enter_context(Uploader(config, place.rank, term, commit, heart))
        trainer = Trainer(
            config=config,
            topology=topology,
            rank=place.rank,
            engine=engine,
            feed=feed,
            saver=saver,
            control=control,
            position=position,
            heart=heart,
            recorder=recorder,
        )
        try:
            trainer.run()
        except StopRequested as request:
            raise trainer.leave(request) from None


def _open_term(
    config: Config, commit: Commit | None, fast: FastTier | None, place: RankPlace, control: dist.ProcessGroup
) -> int:
    term = [0]
    if place.rank == 0 and config.checkpoint.remote:
        announce = RemoteStore(config.checkpoint.remote, config.run_dir, config.launch.timeout_s / 2).open_term
        term[0] = Lease(config.run_dir).open_term(commit, announce=announce)
    elif place.rank == 0:
        term[0] = Lease(config.run_dir).open_term(commit)
    if place.rank == 0 and fast is not None:
        fast.clear()  # what it holds is of older terms now
    dist.broadcast_object_list(term, src=0, group=control)
    return term[0]


def _require_one_ledger(data: RunData, place: RankPlace, control: dist.ProcessGroup) -> None:
    """Every rank reads the ledger's file for itself; on a network file system one may be shown an older state."""
    heads = [""] * place.world
    dist.all_gather_object(heads, data.ledger.head, group=control)
    other = next((rank for rank, head in enumerate(heads) if head != heads[0]), None)
    if other is not None:
        raise MachineError(
            "the ranks do not see the same edit ledger",
            expected=f"one that ends with {heads[0][:16]} on every node, as on rank 0",
            found=f"one that ends with {heads[other][:16]} on rank {other}",
            do="start again when the file system shows all nodes the same ledger.jsonl",
        )


@contextlib.contextmanager
def guarded(run_dir: Path, rank: int) -> Iterator[None]:
    """Record what ends this rank where the supervisor finds it, then let it go on.

    Guards may stand in each other: the first word counts. To be asked to leave is no failure.
    """
    try:
        yield
    except Exception as error:
        incarnation = os.environ.get("FMSCALE_INCARNATION") or f"unsupervised-{os.getpid()}"
        failure.record(run_dir, incarnation, rank, error)
        raise


def main(run_dir: Path) -> int:
    """One rank under torchrun or srun, with a loader of its own.

    If it fails it does not return, but ends the process: to take everything apart that torch and DeepSpeed have loaded
    costs a second or more, and a run that is to come back waits for that.
    """
    if sys.platform == "linux":  # torchrun's agent does not take its ranks along when it is killed
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    config = from_yaml((run_dir / "config.yaml").read_text())
    try:
        with guarded(run_dir, int(os.environ["RANK"])):
            place = place_from_environment(config)
            if AHEAD not in os.environ or wait_for_word(config, place.device):
                run_rank(config, place, LocalLoader)
    except FmscaleError as error:
        print(error, file=sys.stderr)
        _end(error.exit_code)
    except Exception:
        sys.excepthook(*sys.exc_info())
        _end(1)
    return 0


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
