"""Count the FLOPs of a function from its jaxpr, so that every variant of the model is counted.

Only matrix products and convolutions count, a multiplication and an addition each one FLOP;
element-wise work, normalisation and softmax do not. Two counts: ``useful`` is every product of the
traced program; ``least`` leaves out products with a one-hot operand, which a gather can replace.
Taken along an accelerator's code path, they are a property of the model and not of the machine.
``tests/benchmarks/closed_form.py`` is the closed form behind earlier results, with the differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from emerald_jax.target import Target, tracing_for

#: Primitives whose result is one-hot when all operands are.
_MOVES = {"broadcast_in_dim", "concatenate", "convert_element_type"}
_MOVES |= {"reshape", "slice", "squeeze", "transpose"}
#: Straight-through latents are ``one_hot + probs - stop_gradient(probs)``: one-hot in value.
_SUMS = {"add", "sub"}


class Flops(NamedTuple):
    """FLOPs in both counts; see the module docstring."""

    useful: int = 0
    least: int = 0

    def __add__(self, other: Flops) -> Flops:  # type: ignore[override]
        return Flops(self.useful + other.useful, self.least + other.least)

    def __sub__(self, other: Flops) -> Flops:
        return self + -1 * other

    def __rmul__(self, times: int) -> Flops:  # type: ignore[override]
        return Flops(times * self.useful, times * self.least)


def trace_flops(function: Callable, *arguments: Any) -> tuple[Flops, Any]:
    """Trace ``function`` of pytrees as an accelerator would; nothing is compiled or run.

    Returns its FLOPs, and its result as ``jax.ShapeDtypeStruct``. ValueError: a ``while`` loop with
    products, whose number of steps is not in the trace.
    """
    with tracing_for(Target("gpu", bfloat16=True)):
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return _count(jaxpr.jaxpr, set())[0], shapes


def _count(jaxpr: Jaxpr, hot: set[Var]) -> tuple[Flops, list[bool]]:
    """FLOPs of a jaxpr, and which results are one-hot; ``hot`` holds its one-hot variables."""
    total = Flops()

    def is_hot(atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in hot

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, [is_hot(x) for x in equation.invars]
        outputs = [False] * len(equation.outvars)
        if name in ("dot_general", "conv_general_dilated"):
            work = _product(equation)
            total += Flops(work, 0 if any(inputs) else work)
        elif name in _MOVES:
            outputs = [all(inputs)]
        elif name in _SUMS:
            outputs = [any(inputs)]
        else:
            found = []
            for inner in _bodies(equation.params):
                # The last arguments are the equation's: a ``cond`` has an index before them.
                own = inputs[len(inputs) - len(inner.invars) :]
                found.append(_count(inner, set(compress(inner.invars, own))))
            if found:
                times = _repeats(equation, [work for work, _ in found])
                total += times * max((work for work, _ in found), default=Flops())
                outputs = found[-1][1]
        if equation.params.get("name") == "_one_hot":
            outputs = [True]
        hot.update(compress(equation.outvars, outputs))
    return total, [is_hot(x) for x in jaxpr.outvars]


def _bodies(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs that an equation calls; of the branches of a ``cond`` the largest counts."""
    kinds = (ClosedJaxpr, Jaxpr)
    for leaf in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, kinds)):
        if isinstance(leaf, kinds):
            yield leaf.jaxpr if isinstance(leaf, ClosedJaxpr) else leaf


def _repeats(equation: Any, bodies: Sequence[Flops]) -> int:
    """How often an equation runs its body."""
    name = equation.primitive.name
    if name == "while" and any(work.useful for work in bodies):
        raise ValueError("a while loop with matrix products cannot be counted: use lax.scan")
    if name == "shard_map":
        return equation.params["mesh"].size
    return equation.params["length"] if name == "scan" else 1


def _product(equation: Any) -> int:
    """FLOPs of a matrix product or a convolution.

    A product that sums over a single term is a broadcast and costs none; the padding of a
    convolution counts as the zeros that it is multiplied with.
    """
    left, right = (x.aval.shape for x in equation.invars)
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        terms = math.prod(left[i] for i in numbers[0][0])
    else:
        terms = math.prod(right) // right[numbers.rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * terms if terms > 1 else 0
