"""FLOPs of a traced program: matrix products and convolutions, loops multiplied out.

A product that sums over nothing is a broadcast by another name (``layers.spread_rows``), no work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def traced_flops(function: Callable, *arguments: Any) -> int:
    """What ``function`` computes as it is written; recomputation and waste included."""
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, equation.outvars[0].aval
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            terms = math.prod(shape[i] for i in contracted)
            total += 2 * math.prod(out.shape) * terms if terms > 1 else 0
        elif name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            kernel = equation.invars[1].aval.shape
            outputs = kernel[numbers.rhs_spec[0]]
            total += 2 * math.prod(out.shape) * math.prod(kernel) // outputs
        times = equation.params["length"] if name == "scan" else 1
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(inner, ClosedJaxpr):
                total += times * _flops(inner.jaxpr)
            elif isinstance(inner, Jaxpr):
                total += times * _flops(inner)
    return total
