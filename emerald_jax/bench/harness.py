"""How a number is taken: warm up, wait for the device, repeat until the time is used up."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from emerald_jax.bench.options import Budget
from emerald_jax.bench.report import Row
from emerald_jax.training.program import compile_program


def repeat(call: Callable[[], Any], budget: Budget) -> list[float]:
    """Seconds of every repeat of ``call``, each waited for.

    The first call warms up and is not counted, unless it takes longer than the whole budget: what a
    cold start adds is lost in a call of many seconds, and the call is not made for nothing.
    """
    first = _timed(call)
    seconds = [first] if first > budget.seconds else []
    while len(seconds) < budget.least or (
        sum(seconds) < budget.seconds and len(seconds) < budget.most
    ):
        seconds.append(_timed(call))
    return seconds


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def unless_memory_lacks(what: str, measure: Callable[[], Row]) -> Row | str:
    """The row, or a line that says that ``what`` does not fit into the device's memory."""
    try:
        return measure()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return f"{what}: it does not fit into the device's memory"


@dataclass(frozen=True)
class Compiled:
    """A compiled program and what it took to make it.

    Attributes:
        call: the program.
        compile_seconds: tracing, lowering and compiling, nothing from a cache.
        temporaries_bytes: memory it needs beside arguments and results; 0 where JAX cannot say.
        arguments_bytes: of the arguments.
        results_bytes: of the results, donated arguments excluded.
    """

    call: Callable
    compile_seconds: float
    temporaries_bytes: int
    arguments_bytes: int
    results_bytes: int

    def facts(self) -> dict[str, Any]:
        """For a row."""
        return {
            "compile_seconds": round(self.compile_seconds, 2),
            "temporaries_bytes": self.temporaries_bytes,
            "arguments_bytes": self.arguments_bytes,
            "results_bytes": self.results_bytes,
        }


def compile_for(function: Any, *arguments: Any) -> Compiled:
    """Compile a jitted or pmapped function as training does, for the shapes of ``arguments``."""
    with no_compilation_cache():
        began = time.perf_counter()
        program = compile_program(function.lower(*arguments))
        seconds = time.perf_counter() - began
    memory = program.memory_analysis()
    sizes = [
        int(getattr(memory, f"{name}_size_in_bytes", 0) or 0)
        for name in ("temp", "argument", "output", "alias")
    ]
    temporaries, inputs, outputs, aliased = sizes
    return Compiled(program, seconds, temporaries, inputs, outputs - aliased)


@contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Compile anew inside: a compile time read from a cache is none."""
    before = jax.config.jax_enable_compilation_cache
    _use_cache(False)
    try:
        yield
    finally:
        _use_cache(before)


def _use_cache(on: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", on)
    # JAX asks once per process whether there is a cache and remembers the answer.
    compilation_cache.reset_cache()


def memory_peaks() -> dict[str, int]:
    """Highest use of memory so far: of this process, and of the first accelerator if it counts."""
    # Linux counts kibibytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return peaks if device is None else {**peaks, "device_peak_bytes": int(device)}
