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


def machine_line() -> str:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    memory = psutil.virtual_memory().total / 2**30
    day = time.strftime("%Y-%m-%d", time.gmtime())
    system = f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    return f"# {cpu_name()}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}; load {load}; {day}"
