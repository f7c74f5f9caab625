"""Kernels that a program starts on its device, counted in the trace of JAX's profiler."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

#: Operations that contain others; they are no kernels.
_CONTAINERS = {"while", "call", "conditional"}


class Kernel(NamedTuple):
    """One event of a trace: a kernel or a copy, with its duration."""

    name: str
    seconds: float

    @property
    def family(self) -> str:
        """The name without its numbers: ``loop_add_fusion_12`` is ``loop_add_fusion``."""
        return re.sub(r"[._]\d+", "", self.name)

    @property
    def is_copy(self) -> bool:
        """Whether it only moves or fills memory."""
        return self.name.lower().startswith(("memcpy", "memset"))


def trace_kernels(call: Callable[[], Any], times: int, folder: Path) -> tuple[list[Kernel], float]:
    """Trace ``times`` calls, each waited for, into ``folder``.

    Returns the events on the device, and the wall time of all calls in seconds. There are no events
    where the device's profiler gives none.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        start = time.perf_counter()
        for _ in range(times):
            jax.block_until_ready(call())
        seconds = time.perf_counter() - start
    return read_kernels(folder), seconds


def read_kernels(folder: Path) -> list[Kernel]:
    """The device's events in the newest trace of ``folder``; on a CPU the program's operations."""
    paths = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    planes = jax.profiler.ProfileData.from_file(str(paths[-1])).planes if paths else ()
    found = [event for plane in planes for event in _events(plane)]
    leaves = (event for event in found if event.name.partition(".")[0] not in _CONTAINERS)
    return [Kernel(event.name, event.duration_ns / 1e9) for event in leaves]


def _events(plane: Any) -> list[Any]:
    lines = list(plane.lines)
    if plane.name.startswith("/device:"):
        # A GPU has a line per stream, a TPU a line for its operations; the others summarise these.
        streams = [line for line in lines if line.name.startswith("Stream")]
        chosen = streams or [line for line in lines if line.name == "XLA Ops"]
        return [event for line in chosen for event in line.events]
    if plane.name != "/host:CPU" or jax.default_backend() != "cpu":
        return []
    events = (event for line in lines for event in line.events if not event.name.startswith("end:"))
    return [event for event in events if "hlo_op" in dict(event.stats)]


def kernel_facts(kernels: list[Kernel], times: int, seconds: float) -> dict[str, Any]:
    """For a row: how many kernels and copies one of ``times`` calls starts, and their time."""
    busy, copies = sum(kernel.seconds for kernel in kernels), sum(k.is_copy for k in kernels)
    count, spent = Counter(k.family for k in kernels), Counter()
    for kernel in kernels:
        spent[kernel.family] += kernel.seconds
    return {
        "kernels": (len(kernels) - copies) / times,
        "copies": copies / times,
        "kernel_seconds": busy / times,
        "busy_share": busy / seconds,
        "below_3_us": sum(kernel.seconds < 3e-6 for kernel in kernels) / times,
        "longest": [[name, count[name] / times, s / times] for name, s in spent.most_common(20)],
    }
