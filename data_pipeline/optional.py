"""Packages that only some recipes need: asked for by name when they are needed, and the remedy told where they lack."""

from __future__ import annotations

import importlib
from types import ModuleType

from fmscale.errors import ConfigError


def require(module: str, purpose: str, install: str = "fmscale[data]") -> ModuleType:
    """The module. purpose: what needs it, as the beginning of a sentence. Raises ConfigError with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs the package {module.partition('.')[0]}",
            expected=f"what `pip install '{install}'` brings",
            found=" ".join(str(error).split()),
            do=f"pip install '{install}'",
        ) from error
