"""Read HLO, the text of a compiled program: the operations that one call executes, loops counted.

    program = Program(compiled.as_text())
    for operation, times in program.executed():
        print(times, operation.opcode, program.source(operation))

A loop's body counts as often as the loop runs it. A fusion is one operation: one kernel on a GPU,
one pass over its arrays elsewhere. Reading the program before compilation
(``lowered.as_text(dialect="hlo")``) gives its FLOPs: every product is still a plain operation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

#: Operations that cost nothing when a program runs: they name arrays.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_FREE |= {"partition-id", "replica-id", "opt-barrier"}
#: Operations that communicate between devices.
_COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"}
_COLLECTIVES |= {"collective-permute", "collective-broadcast"}
#: Operations that read a part of their first operand, as large as their result.
_PARTS = {"slice", "dynamic-slice", "gather"}

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:.* )?\{$")
_OPERATION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")


class Operation(NamedTuple):
    """One line of a program.

    Attributes:
        name: unique in the program.
        home: name of its computation.
        shape: type of its result, as text: ``f32[8,4]{1,0}``, or a tuple of such.
        opcode: such as ``fusion``, ``dot`` or ``copy``.
        operands: names in the same computation.
        attributes: the rest of the line.
        root: whether it is its computation's result.
    """

    name: str
    home: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self, attribute: str) -> str:
        """Name of the computation in an attribute such as ``body``; empty if there is none."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    def number(self, name: str) -> int | None:
        """An entry of ``backend_config``, such as ``estimated_cycles``; None if there is none."""
        found = re.search(rf'"{name}":(?:{{"n":)?"(\d+)"', self.attributes)
        return int(found[1]) if found else None


class Program:
    """The computations of a program, each a dict of operations by name.

    Attributes:
        computations: name -> {name: :class:`Operation`}.
        entry: name of the computation that a call runs.
    """

    def __init__(self, text: str) -> None:
        """Parse the text; ValueError if it has no entry computation."""
        self.computations: dict[str, dict[str, Operation]] = {}
        self.entry, self._tables, here = "", {}, ""
        for line in text.splitlines():
            if here and (found := _OPERATION.match(line)):
                operation = _operation(here, found)
                self.computations[here][operation.name] = operation
            elif line.startswith("}"):
                here = ""
            elif not line[:1].isspace() and (found := _COMPUTATION.match(line)):
                here = found[2]
                self.computations[here] = {}
                self.entry = here if found[1] else self.entry
            else:
                self._add_to_tables(line)
        if not self.entry:
            raise ValueError("this is not an HLO text: it has no ENTRY computation")

    def executed(self) -> Iterator[tuple[Operation, int]]:
        """Every operation that a call executes, and how often."""
        return self._walk(self.entry, 1)

    def _walk(self, computation: str, times: int) -> Iterator[tuple[Operation, int]]:
        for operation in self.computations[computation].values():
            if operation.opcode in _FREE or operation.opcode.endswith("-done"):
                continue
            if operation.opcode == "while":
                trips = self.trips(operation)
                yield from self._walk(operation.called("body"), times * (trips or 1))
                if trips is None:
                    yield from self._walk(operation.called("condition"), times)
            elif operation.opcode in ("call", "async-start"):
                name = operation.called("to_apply") or operation.called("calls")
                yield from self._walk(name, times)
            elif operation.opcode == "conditional":
                branches = [list(self._walk(name, times)) for name in _branches(operation)]
                yield from max(branches, key=len)
            else:
                yield operation, times

    def trips(self, loop: Operation) -> int | None:
        """How often a loop runs its body; None if the text does not tell.

        The compiler's own number, or the only constant in the condition of a loop from zero.
        """
        if (known := loop.number("known_trip_count")) is not None:
            return known
        found = set()
        for name in self._inside(loop.called("condition")):
            for operation in self.computations[name].values():
                if operation.opcode == "constant" and operation.shape.startswith("s32[]"):
                    found.add(int(operation.operands[0]))
        return found.pop() if len(found) == 1 else None

    def _inside(self, computation: str) -> Iterator[str]:
        """A computation, and those that its fusions and calls run."""
        yield computation
        for operation in self.computations[computation].values():
            for attribute in ("calls", "to_apply"):
                if name := operation.called(attribute):
                    yield from self._inside(name)

    def parts(self, operation: Operation) -> Iterator[Operation]:
        """The operation itself, or those that are fused into it."""
        if operation.opcode != "fusion":
            yield operation
            return
        for part in self.computations[operation.called("calls")].values():
            yield from self.parts(part)

    def collective(self, operation: Operation) -> int:
        """Bytes of a device's own arrays that it sends to the others; 0 if it is no collective."""
        return sum(
            self._bytes_of(part.home, name, on_chip=True)
            for part in self.parts(operation)
            for name in part.operands
            if part.opcode.removesuffix("-start") in _COLLECTIVES
        )

    def flops(self, operation: Operation) -> int:
        """Multiplications and additions of the products and convolutions in an operation."""
        return sum(self._product(part) for part in self.parts(operation))

    def _product(self, operation: Operation) -> int:
        if operation.opcode not in ("dot", "convolution"):
            return 0
        first, second = (
            _sizes(self.computations[operation.home][name].shape) for name in operation.operands[:2]
        )
        results = math.prod(_sizes(operation.shape))
        if operation.opcode == "dot":
            summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.attributes)
            axes = summed[1].split(",") if summed and summed[1] else []
            return 2 * results * math.prod(first[int(axis)] for axis in axes)
        kernel = re.search(r"dim_labels=\w+_(\w+)->", operation.attributes)[1]
        return 2 * results * math.prod(second) // second[kernel.index("o")]

    def traffic(self, operation: Operation) -> int:
        """Bytes that one execution reads from memory and writes to it.

        Of an array that is only sliced or gathered from, the part that is read counts; of one that
        is updated in place, the part that is written. Arrays in a memory on the chip are free.
        """
        if operation.opcode == "dynamic-update-slice":
            return 2 * self._bytes_of(operation.home, operation.operands[1])
        if operation.opcode in _PARTS:
            return 2 * array_bytes(operation.shape)
        fused = operation.opcode == "fusion"
        body = self.computations[operation.called("calls")] if fused else {}
        # The other results of a library call are its work space.
        first = operation.opcode.endswith("-start") or operation.opcode == "custom-call"
        written = array_bytes(operation.shape, first=first)
        shares = {}
        if fused:
            written = sum(_written(end, body) for end in _ends(body))
            needed = _needed(body)
            inputs = [one for one in body.values() if one.opcode == "parameter"]
            shares = {int(one.operands[0]): needed[one.name] for one in inputs}
        return written + sum(
            round(self._bytes_of(operation.home, name) * shares.get(index, 1))
            for index, name in enumerate(operation.operands)
        )

    def _bytes_of(self, home: str, name: str, *, on_chip: bool = False) -> int:
        found = self.computations[home].get(name)
        return array_bytes(found.shape, on_chip=on_chip) if found else 0

    def source(self, operation: Operation) -> str:
        """Innermost line of this package that made an operation: ``models/layers.py:71 Dense``."""
        found = re.search(r"stack_frame_id=(\d+)", operation.attributes)
        frames, frame = self._tables.get("StackFrames", {}), int(found[1]) if found else 0
        # A frame's parent stands before it. Where the first has parent 1, all are one too high.
        shift = int(frames[1].get("parent_frame_id", 0)) if frame else 0
        while frame > 0:
            entry = frames[frame]
            place = self._tables["FileLocations"][int(entry["file_location_id"])]
            file = self._tables["FileNames"][int(place["file_name_id"])]
            if "emerald_jax/" in file:
                function = self._tables["FunctionNames"][int(place["function_name_id"])]
                return f"{file.rpartition('emerald_jax/')[2]}:{place['line']} {function}"
            frame = int(entry.get("parent_frame_id", 0)) - shift
        return "made by the compiler"

    def _add_to_tables(self, line: str) -> None:
        """Read a line of the tables of source lines, which precede the computations."""
        if line.isidentifier():
            self._tables[line] = self._table = {}
        elif found := re.match(r'(\d+) (?:"(.*)"|\{(.*)\})$', line):
            pairs = dict(re.findall(r"(\w+)=(\d+)", found[3] or ""))
            self._table[int(found[1])] = found[2] if found[2] is not None else pairs


def array_bytes(shape: str, *, first: bool = False, on_chip: bool = False) -> int:
    """Bytes of the arrays in a type; with ``first`` of the first one alone.

    Arrays in a memory on the chip are marked ``S(1)``. They count only with ``on_chip``.
    """
    total = 0
    for kind, sizes, layout in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        if on_chip or "S(" not in layout:
            total += math.prod(map(int, filter(None, sizes.split(",")))) * bits // 8
        if first:
            break
    return total


def _ends(body: dict[str, Operation]) -> list[Operation]:
    """The results of a fusion."""
    root = next(one for one in body.values() if one.root)
    return [body[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _written(end: Operation, body: dict[str, Operation]) -> int:
    """Bytes of one result of a fusion: only the new part, if an array is updated in place."""
    while end.opcode == "bitcast":
        end = body[end.operands[0]]
    new = body[end.operands[1]] if end.opcode == "dynamic-update-slice" else end
    return array_bytes(new.shape)


def _needed(body: dict[str, Operation]) -> dict[str, float]:
    """Share of every array in a fusion that its results need, 0 to 1.

    Slices and gathers need their own size of their first operand, updates nothing of the array that
    they change; element-wise operations need what is needed of themselves, all others everything.
    """
    shares = dict.fromkeys(body, 0.0)
    shares |= {end.name: 1.0 for end in _ends(body)}
    sizes = {name: math.prod(_sizes(one.shape)) or 1 for name, one in body.items()}
    for user in reversed(body.values()):  # operands stand before their users
        for index, name in enumerate(user.operands):
            if name not in shares:
                continue  # the value of a constant
            if user.opcode in _PARTS and index == 0:
                part = shares[user.name] * sizes[user.name] / sizes[name]
                shares[name] = min(1.0, shares[name] + part)
            elif user.opcode != "dynamic-update-slice" or index > 0:
                same = sizes[user.name] == sizes[name]
                shares[name] = max(shares[name], shares[user.name] if same else 1.0)
    return shares


def _sizes(shape: str) -> list[int]:
    """Dimensions of an array type; of a tuple those of its first array."""
    found = _ARRAY.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _operation(home: str, line: re.Match) -> Operation:
    """Parse ``name = shape opcode(operands), attributes``."""
    root, name, rest = line.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    end = _closing(rest, opening)
    inside = re.sub(r"/\*.*?\*/", "", rest[opening + 1 : end])
    operands = tuple(part.split()[-1].lstrip("%") for part in inside.split(", ") if part.strip())
    return Operation(name, home, shape, rest[:opening], operands, rest[end + 1 :], bool(root))


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at ``opening``."""
    depth = 0
    for found in re.finditer(r"[()]", text[opening:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return opening + found.start()
    raise ValueError(f"this is not an HLO text: no end of {text[:40]}")


def _branches(operation: Operation) -> list[str]:
    """Computations of which a ``conditional`` runs one."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", operation.attributes)
    if listed:
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return [operation.called("true_computation"), operation.called("false_computation")]
