"""The house keeps its shape: imports point down, files and functions stay small.

The rooms and their levels are those of the architecture notes; a new module must be given a room
here before it lands. Code is read with ``ast``, never imported.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "emerald_jax"

#: Room -> level. A module may import its own level and those below.
LEVELS = {
    "actions": 0,
    "config": 0,
    "presets": 0,
    "process": 0,
    "scores": 0,
    "target": 0,
    "types": 0,
    "ops": 1,
    "envs": 1,
    "replay": 1,
    "models": 2,
    "imagination": 3,
    "losses": 3,
    "agent": 4,
    "run": 5,
    "training": 6,
    "look": 7,
    "reports": 7,
    "commands": 8,
    "cli": 9,
    "__main__": 9,
}
#: Rooms that know nothing of one another, whatever their levels.
STRANGERS = ({"envs", "models"},)

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec"}
FORBIDDEN_FILES = {"utils.py", "helpers.py", "misc.py"}
#: All multi-device code lives here.
PARALLEL = f"{PACKAGE}/training/devices.py"

PACKAGE_FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
ALL_FILES = sorted(
    path
    for folder in (PACKAGE, "tests", "benchmarks", "experiments", "examples")
    for path in (ROOT / folder).rglob("*.py")
)


def name_of(path: Path) -> str:
    """A file's path from the root of the checkout."""
    return path.relative_to(ROOT).as_posix()


def imported_modules(tree: ast.AST, module: str) -> Iterator[str]:
    """Dotted names that a module imports, wherever in it, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # `from emerald_jax import losses` imports a room, `… import __version__` does not.
            yield from (f"{base}.{a.name}" if base == PACKAGE else base for a in node.names)


def import_faults(source: str, module: str) -> list[str]:
    """What is wrong with the imports of ``module``, a dotted name inside the package."""
    room = module.split(".")[1]
    faults = []
    for target in sorted(set(imported_modules(ast.parse(source), module))):
        parts = target.split(".")
        if parts[0] in FORBIDDEN_MODULES:
            faults.append(f"imports {target}")
        if parts[0] != PACKAGE or parts[1:] == ["__version__"]:
            continue
        other = parts[1] if len(parts) > 1 else ""
        if other not in LEVELS:
            faults.append(f"imports {target}, which has no room: import a name from its home")
        elif LEVELS[other] > LEVELS[room]:
            faults.append(
                f"{room} (L{LEVELS[room]}) imports {target} (L{LEVELS[other]}): it points up"
            )
        elif any({room, other} == pair for pair in STRANGERS):
            faults.append(f"{room} imports {target}: these rooms are strangers")
    return faults


def code_faults(source: str, name: str) -> list[str]:
    """What is wrong with the size and the calls of a file."""
    faults = []
    single_device = name.startswith(PACKAGE) and name != PARALLEL
    lines = source.count("\n")
    if lines > MAX_FILE_LINES:
        faults.append(f"{lines} lines, more than {MAX_FILE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = function_lines(node)
            if length > MAX_FUNCTION_LINES:
                faults.append(f"{node.name} has {length} lines, more than {MAX_FUNCTION_LINES}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in FORBIDDEN_CALLS:
                faults.append(f"line {node.lineno} calls {node.func.id}")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if getattr(node.value, "value", True) is not False:
                faults.append(f"line {node.value.lineno} allows pickle")
        elif isinstance(node, ast.Attribute) and node.attr == "pmap" and single_device:
            faults.append(f"line {node.lineno} uses pmap outside {PARALLEL}")
    return faults


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring: documenting shapes must not cost code."""
    length = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        length -= first.end_lineno - first.lineno + 1
    return length


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts == (PACKAGE, "__init__"):
        # The public face may name every room, but importing it must load none.
        assert import_faults(path.read_text(), f"{PACKAGE}.config") == []
        return
    assert parts[1] in LEVELS, f"{name_of(path)} has no room: give it one in LEVELS"
    assert import_faults(path.read_text(), ".".join(parts)) == []


def test_no_files_import_one_another_in_a_circle() -> None:
    arrows = {}
    for path in PACKAGE_FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        arrows[module.removesuffix(".__init__")] = set(
            imported_modules(ast.parse(path.read_text()), module)
        )
    del arrows[PACKAGE]  # names every module, imports none
    assert circles(arrows) == []


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other in a loop, wherever in them the imports stand."""
    order = graphlib.TopologicalSorter(arrows)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        return [error.args[1]]
    return []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


@pytest.mark.parametrize("path", ALL_FILES, ids=name_of)
def test_files_stay_small_and_harmless(path: Path) -> None:
    assert path.name not in FORBIDDEN_FILES, "name a file after what it does"
    assert code_faults(path.read_text(), name_of(path)) == []


def test_the_public_face_is_true() -> None:
    """Every public name stands at the top of its home."""
    face = ast.parse((ROOT / PACKAGE / "__init__.py").read_text())
    homes = next(
        ast.literal_eval(node.value)
        for node in face.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "_HOMES"
    )
    for name, module in homes.items():
        stem = ROOT.joinpath(*module.split("."))
        path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        assert path.is_file(), f"{name}: no module {module}"
        assert name in top_level_names(ast.parse(path.read_text())), f"{module} has no {name}"


def top_level_names(tree: ast.Module) -> set[str]:
    """Names that a module defines or imports at its top."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("emerald_jax.models.heads", "from emerald_jax.losses import actor_loss", "points up"),
        ("emerald_jax.config", "import emerald_jax.ops.returns", "points up"),
        ("emerald_jax.envs.base", "def f():\n    from emerald_jax.models import x", "points up"),
        ("emerald_jax.models.heads", "from ..envs import base", "strangers"),
        ("emerald_jax.models.heads", "from emerald_jax import imagination", "points up"),
        ("emerald_jax.training.loop", "from emerald_jax import imagine", "no room"),
        ("emerald_jax.training.loop", "import pickle", "pickle"),
    ],
)
def test_bad_imports_are_found(module: str, source: str, fault: str) -> None:
    faults = import_faults(source, module)
    assert len(faults) == 1
    assert fault in faults[0]


def test_good_imports_pass() -> None:
    source = "import jax\nfrom emerald_jax import __version__\nfrom ..models import agent"
    assert import_faults(source, "emerald_jax.training.loop") == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("\n" * 501, "501 lines"),
        ("def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
        ("eval('1')", "calls eval"),
        ("np.load(path, allow_pickle=True)", "allows pickle"),
        ("step = jax.pmap(f)", "uses pmap"),
    ],
)
def test_bad_code_is_found(source: str, fault: str) -> None:
    faults = code_faults(source, "emerald_jax/losses.py")
    assert len(faults) == 1
    assert fault in faults[0]


def test_docstrings_cost_no_lines() -> None:
    source = 'def f():\n    """' + "shapes\n" * 70 + '    """\n    return 1\n'
    assert code_faults(source, "emerald_jax/losses.py") == []
