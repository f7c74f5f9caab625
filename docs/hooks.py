"""Pages that are read off the code when the documentation is built: settings, presets, the API.

A page asks with a line of its own: ``<!-- settings -->``, ``<!-- presets -->``, ``<!-- api -->``.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from emerald_jax import PRESETS  # noqa: E402
from emerald_jax.config import Config  # noqa: E402

_SOURCES = {"P": "paper", "R": "release", "D": "DreamerV3", "O": "own"}


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """MkDocs calls this for every page."""
    del kwargs
    for mark, make in _MADE.items():
        line = f"<!-- {mark} -->"
        if line in markdown:
            markdown = markdown.replace(line, make())
    return markdown


def on_page_content(html: str, **kwargs: Any) -> str:
    """Sphinx's roles in docstrings, ``:class:`X```, become plain code."""
    del kwargs
    return re.sub(r":(?:attr|class|data|func|meth|mod):<code>", "<code>", html)


def settings() -> str:
    """Every setting, group by group, with default, meaning and source."""
    tree = ast.parse((ROOT / "emerald_jax" / "config.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    parts = []
    for name, group in (("Config", ""), *_groups(classes["Config"])):
        rows = [
            f"| `--{group}{field.replace('_', '-')}` | {_cell(default)} | {_cell(text)} |"
            for field, default, text in _fields(classes[name])
            if field not in ("preset", *(g.rstrip(".") for _, g in _groups(classes["Config"])))
            or group
        ]
        title = f"`{group.rstrip('.')}`" if group else "The run"
        about = ast.get_docstring(classes[name], clean=True) or ""
        head = "| setting | default | meaning |\n|---|---|---|"
        parts.append("\n".join([f"## {title}", "", " ".join(about.split()), "", head, *rows]))
    return "\n\n".join(parts)


def presets() -> str:
    """What each preset changes."""
    base = _flat(Config().to_dict())
    parts = []
    for name, (about, config) in PRESETS.items():
        changed = {
            k: v for k, v in _flat(config.to_dict()).items() if v != base[k] and k != "preset"
        }
        parts.append(f"### {name}\n\n{about[0].upper()}{about[1:]}.\n")
        if changed:
            rows = [f"| `--{k.replace('_', '-')}` | `{v}` |" for k, v in changed.items()]
            parts.append("\n".join(["| setting | value |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def api() -> str:
    """Every public name, in the groups and the order of the public face."""
    face = (ROOT / "emerald_jax" / "__init__.py").read_text(encoding="utf-8")
    parts = []
    for line in face.splitlines():
        if group := re.fullmatch(r"    # (.+)\.", line):
            parts.append(f"## {group[1]}\n")
        elif name := re.fullmatch(r'    "(\w+)": "([\w.]+)",', line):
            parts.append(f"::: {name[2]}.{name[1]}\n")
    return "\n".join(parts)


def _groups(config: ast.ClassDef) -> list[tuple[str, str]]:
    """Class and prefix of every group of settings, in the order of ``Config``."""
    return [
        (field.annotation.id, f"{field.target.id}.")
        for field in config.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.annotation, ast.Name)
        and field.annotation.id.endswith("Config")
    ]


def _fields(node: ast.ClassDef) -> list[tuple[str, str, str]]:
    """Name, default and documentation of a dataclass' fields."""
    found = []
    for field, text in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            default = ast.unparse(field.value) if field.value else ""
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            about = " ".join(text.value.value.split()) if is_text else ""
            found.append((field.target.id, f"`{default}`", about))
    return found


def _cell(text: str) -> str:
    """Text that cannot end a table's cell; sources spelt out."""
    for letter, source in _SOURCES.items():
        text = text.replace(f" ({letter})", f" *({source})*")
    return text.replace("|", "\\|")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


_MADE: dict[str, Callable[[], str]] = {"settings": settings, "presets": presets, "api": api}
