"""The code that a step consists of: its module and those that it imports of its own package, however indirectly.

Of a module in no package: those that lie in the same directory, unless that is where packages are installed. Of ours
only what is a step's own (data_pipeline/steps): the rest of data_pipeline is what plan.VERSION stands for.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import xxhash

from data_pipeline.step_files import stamp

_OURS = "data_pipeline"
_INSTALLED = ("site-packages", "dist-packages")


def code_hash(module: str) -> str:
    """xxh3_128 over the names and files of all its modules, in hex; "" of a module without a file."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and (path := _file(name)):
            found[name] = path
            waiting += [other for other in _imports(name, path, *stamp(path)) if _belongs(other, module, found[module])]
    digest = xxhash.xxh3_128()
    for name in sorted(found):
        digest.update(f"{name}\0{xxhash.xxh3_128_hexdigest(Path(found[name]).read_bytes())}\n".encode())
    return digest.hexdigest() if found else ""


def _belongs(name: str, module: str, path: str) -> bool:
    """Whether a module called `name` is the own code of `module`, which lies at `path`."""
    top, dot, _ = module.partition(".")
    if top == _OURS:
        return name.startswith(f"{_OURS}.steps.")
    if dot:
        return name.partition(".")[0] == top
    directory = os.path.dirname(path)
    return os.path.basename(directory) not in _INSTALLED and os.path.dirname(_file(name)) == directory


def _file(name: str) -> str:
    """Where a module's code lies; "" of what is no module, or has no file."""
    with contextlib.suppress(ImportError, AttributeError, ValueError):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.has_location and spec.origin:
            return spec.origin
    return ""


@lru_cache(maxsize=1024)
def _imports(name: str, path: str, *stamp: int) -> tuple[str, ...]:
    """Full names of all that the file imports, wherever in it; of `from a import b` both a and a.b, if that is none."""
    package = name if os.path.basename(path) == "__init__.py" else name.rpartition(".")[0]
    with contextlib.suppress(SyntaxError, ImportError, ValueError):  # compiled; another Python's; too many dots
        return tuple(_imported(ast.parse(Path(path).read_bytes()), package))
    return ()


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
