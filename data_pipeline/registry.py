"""Names that a recipe may use for steps, and how an entry of its list becomes a function.

    steps:
      - gopher_repetition                                  # a step of ours
      - gopher_quality: {min_words: 30}                    # with parameters
      - mypackage.steps:no_stubs: {min_characters: 100}    # a function of one's own

A step is a function of documents (`def step(documents, *, ...)`, data_pipeline/document.py) or of columns (a rule,
data_pipeline/rule.py); its keyword parameters are what a recipe may set. De-duplication and other passes over the whole
corpus are names too (`PASSES`): passes.py carries them out, between the steps before and behind them.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.clock import Clock
from data_pipeline.columns import Columns
from data_pipeline.document import Step, named
from data_pipeline.ranges import check_ranges
from data_pipeline.rule import judge
from data_pipeline.step_code import code_hash
from data_pipeline.step_error import told
from data_pipeline.step_files import by_hash, check_files, located
from fmscale.errors import ConfigError, FmscaleError

STEPS: dict[str, str] = {
    "c4_quality": "data_pipeline.steps.c4_quality:c4_quality",
    "classifier": "data_pipeline.steps.classifier:classifier",
    "code_quality": "data_pipeline.steps.code_quality:code_quality",
    "decontaminate": "data_pipeline.steps.decontaminate:decontaminate",
    "extract": "data_pipeline.steps.extract:extract",
    "fineweb_quality": "data_pipeline.steps.fineweb_quality:fineweb_quality",
    "gopher_quality": "data_pipeline.steps.gopher_quality:gopher_quality",
    "gopher_repetition": "data_pipeline.steps.gopher_repetition:gopher_repetition",
    "language": "data_pipeline.steps.language:language",
    "lines": "data_pipeline.steps.lines:lines",
    "pii": "data_pipeline.steps.pii:pii",
    "urls": "data_pipeline.steps.urls:urls",
}
"""name -> module:function of the steps of ours."""
PASSES: dict[str, str] = {
    "exact_dedup": "data_pipeline.passes:exact_dedup",
    "line_dedup": "data_pipeline.passes:line_dedup",
    "minhash_dedup": "data_pipeline.passes:minhash_dedup",
}
"""name -> module:function whose keyword parameters are the pass's settings."""


@dataclass(frozen=True)
class Entry:
    """One entry of a recipe's `steps`, checked."""

    name: str
    """As the recipe gives it: a name of STEPS or PASSES, or package.module:function."""
    target: str
    """package.module:function"""
    parameters: Mapping[str, Any]
    """All of the function's keyword parameters, the defaults too."""

    @property
    def short_name(self) -> str:
        """For times and messages."""
        return self.name.rpartition(":")[2]

    @property
    def is_pass(self) -> bool:
        return self.name in PASSES

    @property
    def function(self) -> Callable[..., Any]:
        return _load(self.name, self.target)

    @property
    def is_rule(self) -> bool:
        return _first_parameter(self.function) == "columns"

    def record(self) -> list[Any]:
        """What decides the bytes that come out: name, parameters with files by hash, hash of the function's code."""
        code = code_hash(self.target.partition(":")[0])
        return [self.name, by_hash(self.function, self.parameters), code]


def entries(steps: Sequence[Any]) -> list[Entry]:
    """The entries of a recipe's list. Raises ConfigError: an unknown name, a parameter that the step does not have or
    of another type than its default, a function that cannot be imported, a file that cannot be read."""
    return [_entry(value) for value in steps]


def with_located_files(steps: Sequence[Any]) -> list[Any]:
    """The same list, with absolute paths of the files that it names."""
    given = [{} if isinstance(value, str) else next(iter(value.values())) or {} for value in steps]
    return [{entry.name: located(entry.function, own)} for entry, own in zip(entries(steps), given, strict=True)]


def steps_of(entries: Sequence[Entry], clock: Clock | None = None) -> list[Step]:
    """The steps that entries stand for (passes are none); neighbouring rules are one step and share columns.

    clock: measures each rule of a step of rules.
    """
    steps: list[Step] = []
    rules: list[tuple[Entry, Any]] = []

    def close() -> None:
        if rules:
            both = [", ".join(names) for names in zip(*((e.short_name, e.name) for e, _ in rules), strict=True)]
            judges = tuple((entry.short_name, rule) for entry, rule in rules)
            steps.append(named(functools.partial(judge, rules=judges, clock=clock), *both))
            rules.clear()

    for entry in entries:
        assert not entry.is_pass, entry.name
        bound = functools.partial(entry.function, **entry.parameters)
        if entry.is_rule:
            rules.append((entry, bound))
        else:
            close()
            steps.append(named(bound, entry.short_name, entry.name))
    close()
    return steps


def rehearse(entries: Sequence[Entry]) -> None:
    """Each step of ours over no document, each rule over one, each pass made: what they have to say of their parameters
    and files, they say before anything is read. Raises ConfigError, also for what they cannot put into words."""
    for entry in entries:
        made: Sequence[Any] = ()
        try:
            if entry.is_pass:
                entry.function(None, **entry.parameters)
            elif entry.name in STEPS and entry.is_rule:
                entry.function(Columns(["One line.\nAnd another one."]), **entry.parameters)
            elif entry.name in STEPS:
                made = list(entry.function(iter(()), **entry.parameters))
        except FmscaleError:
            raise
        except Exception as error:
            raise ConfigError(
                f"step {entry.name} cannot work with its parameters",
                expected="values as its docstring names them (docs/data-steps.md)",
                found=f"{dict(entry.parameters)}: {told(error)}",
                do="correct the recipe",
            ) from error
        assert not made, f"step {entry.name} made a document of nothing"


def _entry(value: Any) -> Entry:
    name: Any
    given: Any
    if isinstance(value, str):
        name, given = value, {}
    elif isinstance(value, Mapping) and len(value) == 1:
        name, given = next(iter(value.items()))
        given = {} if given is None else given
    else:
        name, given = value, None
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise ConfigError(
            "an entry of the recipe's steps is neither a name nor a name with parameters",
            expected="`- NAME` or `- NAME: {parameter: value}`",
            found=str(value),
            do="write one step an entry, its parameters in braces or indented below it",
        )
    target = STEPS.get(name) or PASSES.get(name) or (name if ":" in name else "")
    if not target:
        near = difflib.get_close_matches(name, [*STEPS, *PASSES], 1)
        raise ConfigError(
            f"the recipe has an unknown step: {name}",
            expected=f"one of {', '.join(sorted([*STEPS, *PASSES]))}; or package.module:function",
            found=name,
            do=f"did you mean {near[0]}?" if near else "correct the name (docs/data.md lists the steps)",
        )
    function = _load(name, target)
    known = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for key, wanted in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), 1)
            raise ConfigError(
                f"step {name} has no parameter {key}",
                expected=", ".join(known) or "no parameters",
                found=f"{key}: {wanted}",
                do=f"did you mean {near[0]}?" if near else "leave it out, or correct its name",
            )
        if not _fits(wanted, known[key].default):
            raise ConfigError(
                f"a parameter of step {name} has the wrong type",
                expected=f"{key}: {_kind(known[key].default)}",
                found=f"{wanted} ({type(wanted).__name__})",
                do="correct the value",
            )
    defaults = {key: p.default for key, p in known.items() if p.default is not p.empty}
    if missing := [key for key in known if key not in defaults and key not in given]:
        raise ConfigError(
            f"step {name} lacks a parameter",
            expected=", ".join(missing),
            found=", ".join(map(str, given)) or "no parameters",
            do=f"write `- {name}: {{{missing[0]}: ...}}`",
        )
    check_ranges(name, function, {**defaults, **given}, given)
    check_files(name, function, {**defaults, **given})
    return Entry(name, target, {**defaults, **given})


def _fits(value: Any, default: Any) -> bool:
    """A value for a parameter with this default: of its type; a whole number does for a fraction."""
    if default is inspect.Parameter.empty or default is None:
        return True
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, tuple | list):
        return isinstance(value, tuple | list)
    if isinstance(default, Mapping):
        return isinstance(value, Mapping)
    return type(value) is type(default)


def _kind(default: Any) -> str:
    """What a recipe writes for a parameter with this default, with an example."""
    if isinstance(default, tuple | list):
        words = "texts" if all(isinstance(each, str) for each in default) else "values"
        return f"a list of {words}, for example {json.dumps(default or ['A', 'B'])}"
    if isinstance(default, Mapping):
        return f"values by name, for example {json.dumps(dict(default))}"
    return f"{type(default).__name__}, for example {default}"


def _first_parameter(function: Callable[..., Any]) -> str:
    try:
        return next(iter(inspect.signature(function).parameters), "")
    except (TypeError, ValueError):  # some of Python's own have none
        return ""


def _cause(error: Exception) -> str:
    """Messages of Python's import are whole; of other errors the class and the line say more."""
    plain = isinstance(error, ImportError | AttributeError | ValueError) and not isinstance(error, SyntaxError)
    return " ".join(str(error).split()) if plain else told(error)


def _load(name: str, target: str) -> Callable[..., Any]:
    module, _, function = target.partition(":")
    try:
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a module does when it is imported: it is anybody's
        raise ConfigError(
            "a step of the recipe cannot be loaded",
            expected="package.module:function, importable from here",
            found=f"{name}: {_cause(error)}",
            do="check the name; install its package, or put its directory on PYTHONPATH",
        ) from error
    if not callable(loaded) or _first_parameter(loaded) not in ("documents", "columns", "work"):
        raise ConfigError(
            f"{name} is no step",
            expected="a function whose first parameter is `documents` (a step) or `columns` (a rule)",
            found=f"{name}: {type(loaded).__name__}"
            + (f", its first parameter {_first_parameter(loaded) or 'unknown'}" if callable(loaded) else ""),
            do="see data_pipeline/document.py and data_pipeline/rule.py for an example of each",
        )
    return loaded
