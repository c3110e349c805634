"""What a start may take from the object store: commits that this run directory lacks, or has and cannot believe.

Term records are made equal on both sides first, so that both have one history. Of a commit that is taken every rank
fetches its share of the files, whole, since hashes are of whole files: each byte comes over the network once, however
many ranks there are, and is checked before it gets its name. Files that are here and hold stay; so a checkpoint that
is damaged here costs what is damaged. The marker comes last. Which commit is taken: fmscale/training/agree.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

from fmscale.config import Config
from fmscale.observe.events import EventLog
from fmscale.training.checkpoint import CheckpointStore
from fmscale.training.checkpoint_format import MARKER, Commit
from fmscale.training.remote_store import RemoteStore

Report = Callable[[str], None]


class RemoteTier:
    """The checkpoints of the run `store` that stand in its object store, of which it has one.

    Every method raises MachineError where the store does not answer or refuses.
    """

    where = "in the object store"

    def __init__(self, config: Config, store: CheckpointStore) -> None:
        self._remote = RemoteStore(config.checkpoint.remote, config.run_dir, config.checkpoint.remote_timeout_s)
        self._store, self._events = store, EventLog(config.run_dir)
        self._patience_s = min(self._remote.limit_s, config.launch.timeout_s / 2)

    def sync(self) -> None:
        """Before anything here is looked at: the terms say what the history is. Raises as `RemoteStore.sync_terms`."""
        self._remote.bucket.within(self._patience_s)  # the other ranks wait in a collective
        self._remote.sync_terms()

    def candidates(self, report: Report) -> Iterator[Commit]:
        """The commits of the run's history that stand there, newest first; as CheckpointStore's."""
        self._remote.bucket.within(self._patience_s)
        with self._remote.mirror() as there:

            def tell(text: str) -> None:
                report(f"{text.replace(str(there.root), there.address)} ({self.where})")

            yield from there.candidates(tell)

    def named(self, name: str) -> Iterator[Commit]:
        """The commit `name`, of whatever branch, if it stands there."""
        self._remote.bucket.within(self._patience_s)
        with self._remote.mirror() as there:
            yield from (commit for commit in there.list() if commit.name == name)

    def copy_share(self, commit: Commit, rank: int, world: int) -> int:
        """Fetch what is lacking here of the files that fall to `rank` of `world`; bytes.

        Raises CheckpointError for a file that is missing there or not as it was written.
        """
        self._remote.restart_clock()
        return self._remote.fetch(commit, rank, world)

    def publish(self, commit: Commit, rank: int, copied: int = 0) -> None:
        """Rank 0 makes the files a checkpoint of the run, once all ranks are done. copied: by all of them, in bytes."""
        if rank:
            return
        healed = (self._store.root / commit.name / MARKER).exists()
        self._remote.publish(commit)
        self._events.write("fetch", name=commit.name, bytes=copied, retries=self._remote.bucket.retries)
        how = "was damaged here and is whole again" if healed else "was fetched"
        print(f"{commit.name} {how}: {copied:,} bytes from {self._remote.bucket.url}", flush=True)

    def give_up(self, commit: Commit) -> None:
        """Remove what was fetched of one that does not hold."""
        directory = self._store.root / commit.name
        if not (directory / MARKER).exists():
            shutil.rmtree(directory, ignore_errors=True)
