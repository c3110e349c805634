"""Plain values as YAML for people: keys in the order given, scripts and configs as blocks. A library quotes all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML is not typed
    """No anchors, and lists indented below their key."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def documents(*values: Mapping[str, Any], head: str = "") -> str:
    """One YAML document each. head: comment lines before the first, without their `#`."""
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    texts = (yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, width=120) for value in values)
    return comment + "---\n".join(texts)
