"""What a model loses on held-out rows, source by source, shared out over any number of processes.

    scores = evaluate(model, {"web": corpus}, config, token_bytes, control)     # the same on every rank
    scores["web"].loss, scores["web"].bits_per_byte

The rows are those of training's own evaluations (`heldout_places`), the model is whole on every rank. Ranks share a
round of rows, tell each other sums, and go on: so what fails on one ends all, and none waits for another for longer
than a round takes. Sums are kept in float64; how many ranks there are shows in the last digits at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from fmscale.config import Config
from fmscale.corpus.loader import collate, heldout_places
from fmscale.corpus.rows import Places, Readable, read_rows
from fmscale.errors import DataError, FmscaleError
from fmscale.model.decoder import Decoder
from fmscale.model.loss import batch_loss_sum

ROUND = 8
"""Micro-batches of each rank between two words to the others."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Score:
    """Of some rows; scores add up."""

    rows: int = 0
    targets: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of text that the targets stand for."""
    nats: float = 0.0
    """Loss summed over targets."""

    def __add__(self, other: Score) -> Score:
        return Score(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def loss(self) -> float:
        """Nats per target; NaN without targets."""
        return self.nats / self.targets if self.targets else math.nan

    @property
    def perplexity(self) -> float:
        return math.inf if self.loss > 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else math.nan

    def to_json(self) -> dict[str, int | float | None]:
        """None for what is no finite number."""
        means = {"loss": self.loss, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}
        finite = {name: value if math.isfinite(value) else None for name, value in means.items()}
        return {"rows": self.rows, "targets": self.targets, "text_bytes": self.text_bytes, **finite}


def evaluate(
    model: Decoder,
    corpora: Mapping[str, Readable],
    config: Config,
    token_bytes: npt.NDArray[np.int32],
    control: dist.ProcessGroup,
    told: Callable[[int, int], None] = lambda rows, of: None,
) -> dict[str, Score]:
    """The score of each of `corpora` over the first `eval.rows` rows of all of them (0: all), the same on every rank.

    Collective: each rank of `control`, a gloo group, has the whole model on its device. token_bytes: [vocab_size], as
    `Tokenizer.token_bytes` gives it. told: is told after each round of the rows that are done, and of how many.
    Raises DataError on every rank: no rows at all, or a chunk that one of them found damaged.
    """
    readable = list(corpora.values())
    places = heldout_places(readable, config.data.seq_len, config.eval.rows)
    if not len(places.chunk):
        raise DataError(
            "there is nothing to evaluate on",
            expected=f"a held-out row of {config.data.seq_len} tokens or more",
            found=f"none in {', '.join(str(corpus.path) for corpus in readable)}",
            do="prepare a corpus with a higher heldout_fraction, or name another with --corpus NAME=DIR",
        )
    rank, world, done = dist.get_rank(control), dist.get_world_size(control), 0
    scores = {}
    for number, name in enumerate(corpora):
        own, scores[name] = places.part(np.flatnonzero(places.source == number)), Score()
        for first in range(0, len(own.chunk), span := world * ROUND * config.train.micro_batch):
            share = own.part(slice(first, first + span))
            start, stop = (len(share.chunk) * r // world for r in (rank, rank + 1))
            mine = share.part(slice(start, stop))
            for score in together(control, partial(_score, model, readable, mine, config, token_bytes)):
                scores[name] += score
            done += len(share.chunk)
            told(done, len(places.chunk))
    return scores


def together(control: dist.ProcessGroup, work: Callable[[], Result]) -> list[Result]:
    """What each rank's `work` came to, by rank. Raises on every rank the FmscaleError that the first one raised."""
    outcome: Result | FmscaleError
    try:
        outcome = work()
    except FmscaleError as error:
        outcome = error
    outcomes: list[Any] = [None] * dist.get_world_size(control)
    dist.all_gather_object(outcomes, outcome, group=control)
    for each in outcomes:
        if isinstance(each, FmscaleError):
            raise each
    return outcomes


@torch.no_grad()
def _score(
    model: Decoder, corpora: list[Readable], places: Places, config: Config, token_bytes: npt.NDArray[np.int32]
) -> Score:
    """Of the rows at `places`, none or some, on the model's device."""
    device, documents = next(model.parameters()).device, config.model.attention == "document"
    nats, targets, text_bytes = torch.zeros((), dtype=torch.float64, device=device), 0, 0
    for first in range(0, len(places.chunk), config.train.micro_batch):
        some = places.part(slice(first, first + config.train.micro_batch))
        found = read_rows(corpora, some, config.data.seq_len, documents)
        batch = collate(np.arange(len(some.chunk)), found, config.data.seq_len, documents)
        nats += batch_loss_sum(model, batch, device)
        targets += batch.targets
        text_bytes += int(token_bytes[batch.labels[batch.labels >= 0]].sum())
    return Score(len(places.chunk), targets, text_bytes, nats.item())
