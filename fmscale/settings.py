"""YAML files and `key=value` arguments, merged left to right over a frozen dataclass.

    config = load_settings(Config, ["configs/demo.yaml", "mine.yaml"], ["train.steps=100"])

OmegaConf does the merging against the dataclass: an unknown key is refused with a suggestion, a wrong type with the
type. Its resolvers are switched off, because `${oc.env:...}` in a foreign file would read any secret.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from omegaconf import DictConfig, LiteralNode, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fmscale.errors import ConfigError

Schema = TypeVar("Schema")
_ESCAPE = re.compile(r"(\\*)\$\{")
_SECRET = re.compile(
    r"(^|[._])(api_?key|(secret_)?access_key|secret|password|passwd|credentials?)$"
    r"|(^|\.)(\w*_)?(api|access|auth|hf|session)_token$|(^|\.)token$",
    re.IGNORECASE,
)
_PLAIN = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
_REMEDY = "docs/config.md and docs/data.md say where every key stands with its default"


def load_settings(
    schema: type[Schema], files: Sequence[str | Path], overrides: Sequence[str] = (), shell: Sequence[str] = ()
) -> Schema:
    """Merge `files` left to right over the defaults of `schema`, then `overrides`.

    shell: keys of lists whose lines are shell's, where `${NAME}` is a variable of the shell and stays as it is.

    Raises ConfigError: a file that is missing or no YAML, an unknown key (with the nearest known one), a value of the
    wrong type, an interpolation, an override without `=`.
    """
    OmegaConf.clear_resolvers()
    merged: Any = OmegaConf.structured(schema)
    for file in files:
        merged = _merge(merged, _shell_escaped(_read_yaml(Path(file)), shell), str(file))
    for override in overrides:
        if not re.match(r"^[A-Za-z_][\w.\-]*=", override):
            raise ConfigError(
                "an argument is neither a file nor a setting",
                expected="FILE.yaml or key=value, for example train.steps=100",
                found=override,
                do="write the setting with `=` and no spaces around it",
            )
        merged = _merge(merged, _dotlist(override), f"the argument {override}")
    return _to_object(schema, merged)


def settings_from_yaml(schema: type[Schema], text: str, origin: str) -> Schema:
    """What `settings_to_yaml` wrote; `origin` names the place in errors."""
    OmegaConf.clear_resolvers()
    loaded = _parsed(lambda: OmegaConf.create(text), origin)
    return _to_object(schema, _merge(OmegaConf.structured(schema), loaded, origin))


def settings_to_yaml(settings: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(settings), resolve=False)


def _to_object(schema: type[Schema], merged: Any) -> Schema:
    try:
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _config_error(error, "any file or argument") from error
    assert isinstance(settings, schema), f"OmegaConf made a {type(settings).__name__} of {schema.__name__}"
    for key, value, kind in _misplaced(settings):
        raise ConfigError(f"setting `{key}` has a wrong value", expected=kind, found=str(value)[:80], do=_REMEDY)
    return settings


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(
            "a config file is missing",
            expected="a YAML file",
            found=f"{path} is {'a directory' if path.is_dir() else 'not there'}",
            do="check the path; configs/ has examples",
        )
    return _parsed(lambda: OmegaConf.load(path), str(path))


def _parsed(parse: Callable[[], Any], origin: str) -> DictConfig:
    try:
        loaded = parse()
    except Exception as error:  # YAML libraries raise a dozen classes for one thing: this is not YAML
        raise ConfigError(
            "a config file is not valid YAML",
            expected="key: value lines",
            found=f"{origin}: {' '.join(str(error).split())[:160]}",
            do="mend that place",
        ) from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(
            "a config file holds no settings",
            expected="key: value lines",
            found=f"{origin}: a {type(loaded).__name__}",
            do="see configs/demo.yaml",
        )
    return loaded


def _shell_escaped(read: DictConfig, keys: Sequence[str]) -> DictConfig:
    content: Any = OmegaConf.to_container(read, resolve=False)
    for key in keys:
        if isinstance(content.get(key), list):
            content[key] = [_ESCAPE.sub(_escaped, line) if isinstance(line, str) else line for line in content[key]]
    escaped: DictConfig = OmegaConf.create(content)
    return escaped


def _escaped(match: re.Match[str]) -> str:
    return 2 * match[1] + r"\${"  # as OmegaConf's grammar has it: backslashes count double in front of `${`


def _dotlist(override: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:  # the value is YAML too
        raise ConfigError(
            "a setting's value is not valid YAML", expected="key=value", found=override, do="quote the value"
        ) from error


def _merge(base: Any, update: DictConfig, origin: str) -> Any:
    new = OmegaConf.to_container(update, resolve=False)
    for key, value in _leaves(new):
        if _SECRET.search(key):
            raise ConfigError(
                "a secret is no setting: settings are written down, and arguments are seen by everybody on the machine",
                expected="it in the environment (WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, HF_TOKEN) or in its tool's file",
                found=f"{key}, whose value is not repeated here",
                do="take it out; if it stood in a command or a file that others can read, replace it by a new one",
            )
        if isinstance(value, str) and "${" in value:
            raise ConfigError(
                "interpolation is switched off in settings",
                expected="a plain value",
                found=f"{key}={value} in {origin}",
                do="write the value itself; tools that need a secret read it from the environment themselves",
            )
    for key in _true_keys(new):
        raise ConfigError(
            "a key was read as true or false: YAML takes no, off, yes and on for that",
            expected='"no" in quotes, for example: language: {keep: {"no": 0.5}}',
            found=f"{key} in {origin}",
            do="quote it",
        )
    for key, value in _lists_replaced(OmegaConf.to_container(base, resolve=False), new):
        entries = dataclasses.is_dataclass(OmegaConf.select(base, key)._metadata.element_type)
        example = "{KEY: value, ...}" if entries else value if isinstance(value, str) and value else "VALUE"
        raise ConfigError(
            f"setting `{key}` is a list of settings" if entries else f"setting `{key}` is a list",
            expected=f"{key}=[{example}, ...], all of its entries at once",
            found=f"{value} in {origin}",
            do=_REMEDY,
        )
    for key, value, names in _groups_replaced(OmegaConf.to_container(base, resolve=False), new):
        raise ConfigError(
            f"setting `{key}` is a group of settings",
            expected=f"{key}.KEY=value, KEY one of {', '.join(names)}" if names else f"{key}.NAME.KEY=value",
            found=f"{key}={value} in {origin}",
            do=_REMEDY,
        )
    try:
        return OmegaConf.merge(base, OmegaConf.create(_words_for_truth(base, new)))
    except OmegaConfBaseException as error:
        raise _config_error(error, origin) from error
    except TypeError as error:  # what OmegaConf makes of a list for a group inside a list, without saying where
        raise ConfigError(
            "a setting is a list where a group of settings belongs, or the other way round",
            expected="[...] for lists and {KEY: value, ...} for groups, as in the schema",
            found=f"{', '.join(key for key, _ in _leaves(new))[:80]} in {origin[:160]}",
            do=_REMEDY,
        ) from error


def _misplaced(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(key, value, what belongs there) of groups and lists that OmegaConf lets be values of a dict[str, float]."""
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, arguments = getattr(settings, field.name), get_args(hints[field.name])
        entries: list[tuple[Any, Any]] = [(field.name, value)]
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            entries = [(f"{field.name}.{key}", each) for key, each in pairs]
        for key, each in entries:
            if dataclasses.is_dataclass(each):
                yield from _misplaced(each, f"{prefix}{key}.")
            elif isinstance(value, dict | list) and isinstance(each, dict | list) and arguments[-1] in _PLAIN:
                yield f"{prefix}{key}", each, _PLAIN[arguments[-1]]


def _words_for_truth(base: Any, new: Any) -> Any:
    """`new` with "off" for False and "on" for True where `base` has a choice of words: YAML reads off as False."""
    for key in (key for key in new if isinstance(key, str) and key in base):
        node = base._get_node(key) if isinstance(base, DictConfig) else None
        if isinstance(new[key], dict) and isinstance(node, DictConfig):
            new[key] = _words_for_truth(node, new[key])
        elif isinstance(new[key], bool) and isinstance(node, LiteralNode):
            words = ("on", "yes", "true") if new[key] else ("off", "no", "false")
            new[key] = next((word for word in words if word in get_args(node._metadata.ref_type)), new[key])
    return new


def _true_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Where a key is True or False: nobody means those."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ()):
        if isinstance(key, bool):
            yield f"{prefix}{key}"
        yield from _true_keys(value, f"{prefix}{key}.")


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), node


def _groups_replaced(base: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, list[str]]]:
    """(key, value, names in the group) where `new` has a value for what is a group in `base`."""
    for key in (key for key in new if key in base):
        if isinstance(base[key], dict) and isinstance(new[key], dict):
            yield from _groups_replaced(base[key], new[key], f"{prefix}{key}.")
        elif isinstance(base[key], dict):
            yield f"{prefix}{key}", new[key], list(base[key])


def _lists_replaced(base: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) where `new` has something else for what is a list in `base`."""
    for key in (key for key in new if key in base):
        if isinstance(base[key], dict) and isinstance(new[key], dict):
            yield from _lists_replaced(base[key], new[key], f"{prefix}{key}.")
        elif isinstance(base[key], list) and not isinstance(new[key], list):
            yield f"{prefix}{key}", new[key]


def _config_error(error: OmegaConfBaseException, origin: str) -> ConfigError:
    """Our words for OmegaConf's: its first line is the cause, a `Did you mean` line the remedy."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = getattr(error, "full_key", None) or "?"
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(
            f"setting `{key}` has no value",
            expected="one: it has no default",
            found=f"none in {origin}",
            do=f"set {key}=... ({_REMEDY})",
        )
    hint = next((line for line in lines if "Did you mean" in line), "")
    if hint or "not in" in lines[0]:
        suggestion = re.search(r"Did you mean(?: one of)?:? *'?([\w.]+)'?", hint)
        return ConfigError(
            f"unknown setting `{key}`",
            expected="a key of the schema",
            found=f"{key} in {origin}",
            do=f"did you mean `{suggestion[1]}`? ({_REMEDY})" if suggestion else _REMEDY,
        )
    expected = "a group of settings" if "is not a subclass of" in lines[0] else lines[0]
    return ConfigError(f"setting `{key}` has a wrong value", expected=expected, found=origin, do=_REMEDY)


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; entries of a list by their number."""
    values: Iterable[tuple[Any, Any]]
    if isinstance(config, dict):
        values = config.items()
    elif isinstance(config, list):
        values = enumerate(config)
    else:
        values = ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    for name, value in values:
        if dataclasses.is_dataclass(value) or isinstance(value, dict | list):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
