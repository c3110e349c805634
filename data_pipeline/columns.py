"""A batch of documents as columns: what rules look at, made once for all of them, without a Python loop over words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Columns:
    """The texts of some documents, in order; everything else is worked out from them when it is first asked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        """Documents."""
        return len(self.texts)

    def only(self, kept: npt.NDArray[np.bool_]) -> Columns:
        """The columns of the documents in `kept` (bool [documents]); what has been worked out for them stays."""
        return Columns([text for text, stays in zip(self.texts, kept.tolist(), strict=True) if stays])
