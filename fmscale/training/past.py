"""A checkpoint's past must be the run's: the same order of rows, and an edit ledger that only grew since."""

from __future__ import annotations

from fmscale.corpus.ledger import Ledger
from fmscale.corpus.sources import RunData
from fmscale.errors import CheckpointError
from fmscale.training.checkpoint_format import Commit


def require_past(commit: Commit, data: RunData) -> None:
    """Raise unless a run of `data` may go on from `commit`: DataError for a ledger that is another one, CheckpointError
    for an order that is, and for an entry that changes what was trained."""
    require_ledger(commit, data.ledger)
    require_untrained(commit, data.ledger)
    require_order(commit, data)


def require_untrained(commit: Commit, ledger: Ledger) -> None:
    """Raise CheckpointError for an entry of `ledger`, that is behind the checkpoint's and changes what it trained."""
    for entry in ledger.entries[len(commit.state["ledger"]) :]:
        if entry.from_row < commit.rows:
            raise CheckpointError(
                f"entry {entry.seq} of the edit ledger ({entry.kind}) changes rows that {commit.name} has trained",
                expected=f"entries from row {commit.rows} on",
                found=f"from row {entry.from_row}",
                do="roll back to a checkpoint from before it: `fmscale train ... --roll-back NAME`",
            )


def require_ledger(commit: Commit, ledger: Ledger) -> None:
    """Raise DataError unless `ledger` continues the one that the checkpoint was trained by."""
    where = f"checkpoint {commit.name}"
    Ledger.from_json(commit.state["ledger"], where).require_prefix_of(ledger, where)


def require_order(commit: Commit, data: RunData) -> None:
    """Raise CheckpointError unless the checkpoint was trained on the order of `data`, and so on the same corpora."""
    order = data.order.fingerprint()
    if commit.state["order_fingerprint"] != order:
        raise CheckpointError(
            f"checkpoint {commit.name} was trained on another order of rows",
            expected=f"order {commit.state['order_fingerprint'][:16]}",
            found=f"order {order[:16]}",
            do="restore the corpora, their weights and the seed, or start another run with run.name=NEW",
        )
