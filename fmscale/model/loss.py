"""The one loss: cross-entropy summed over targets, in float32 whatever the logits are.

A sum, not a mean: the engine divides by the targets of the global batch, which no rank knows from its own rows.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

NO_TARGET = -100
"""Label of a place that has nothing to predict: padding rows, and masked tokens of other objectives."""


def token_loss_sum(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Scalar float32: sum of -log softmax(logits)[label] in nats over labels other than NO_TARGET; 0 where none is."""
    return functional.cross_entropy(
        logits_BTV.flatten(0, -2).float(), labels_BT.flatten().long(), ignore_index=NO_TARGET, reduction="sum"
    )
