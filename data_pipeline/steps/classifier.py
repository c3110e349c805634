"""Documents out that a trained classifier scores low: `- classifier: {model: quality.safetensors, threshold: 0.3}`.

The model is trained by `fmscale data classifier train` on documents to be like and documents to be unlike, as for the
corpora of GPT-3 and DCLM (Brown et al. 2020, appendix A; Li et al. 2024, section 4.4); quality_model.py computes it.
A document gets its score as `classifier_score` among its other fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from data_pipeline.document import Document, drop
from data_pipeline.quality_model import QualityModel
from data_pipeline.ranges import TEXT, in_range
from data_pipeline.rule import batches
from data_pipeline.step_files import once_per_file, reads_files
from fmscale.errors import ConfigError


@reads_files("model")
@in_range(model=TEXT)
def classifier(documents: Iterable[Document], *, model: str, threshold: float = 0.5) -> Iterator[Document]:
    """Drops `classifier/low` (found: the score) below `threshold`; 0 drops nothing, and only names the score.

    Raises ConfigError: a threshold outside 0 to 1; DataError: a file that is no such model.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(
            "the threshold of step classifier is out of range",
            expected="0 to 1; the training's report says what each keeps",
            found=str(threshold),
            do="correct the recipe",
        )
    trained: QualityModel = _load([model])
    for batch in batches(documents):
        for document, score in zip(batch, trained.scores([document.text for document in batch]), strict=True):
            scored = replace(document, meta={**document.meta, "classifier_score": score})
            yield drop(scored, "classifier/low", score) if score < threshold else scored


@once_per_file
def _load(paths: tuple[str, ...]) -> QualityModel:
    return QualityModel.load(paths[0])
