"""The machine a benchmark ran on, in the words that stand over its figures."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import psutil


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def vector_units() -> str:
    """The widest of the processor's extensions that decide how fast it trains."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}
    return next((name for flag, name in names.items() if flag in flags), "no AVX2")


def precision_settings() -> list[str]:
    """What the demo's configuration needs on this machine: fp32 where bf16 is slower, as `make demo` does it."""
    from fmscale.observe.flops import fast_bf16

    return [] if fast_bf16() else ["train.precision=fp32"]


def machine_line() -> str:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    memory = psutil.virtual_memory().total / 2**30
    day = time.strftime("%Y-%m-%d", time.gmtime())
    system = f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    return f"# {cpu_name()} ({vector_units()}), {os.cpu_count()} cores, {memory:.0f} GiB, {system}; load {load}; {day}"
