"""Fill pages from the code when the documentation is built: settings, presets, the API.

A page has a line for each: ``<!-- settings -->``, ``<!-- presets -->``, ``<!-- api -->``.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from emerald_jax import PRESETS  # noqa: E402
from emerald_jax.config import Config  # noqa: E402
from emerald_jax.run.directory import compare_settings  # noqa: E402

_SOURCES = {"P": "paper", "R": "release", "D": "DreamerV3", "O": "own"}


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Called by MkDocs for every page: replace the marks."""
    del kwargs
    for make in (settings, presets, api):
        mark = f"<!-- {make.__name__} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def on_page_content(html: str, **kwargs: Any) -> str:
    """Turn Sphinx's roles in docstrings, ``:class:`X```, into plain code."""
    del kwargs
    return re.sub(r":(?:attr|class|data|func|meth|mod):<code>", "<code>", html)


def settings() -> str:
    """Every setting, group by group, with default, meaning and source."""
    tree = ast.parse((ROOT / "emerald_jax" / "config.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    # Group of settings -> its class, in the order of Config.
    fields = [node for node in classes["Config"].body if isinstance(node, ast.AnnAssign)]
    kinds = {field.target.id: ast.unparse(field.annotation) for field in fields}
    groups = {name: kind for name, kind in kinds.items() if kind.endswith("Config")}
    parts = []
    for group, kind in {"": "Config", **groups}.items():
        prefix, hidden = (f"{group}.", ()) if group else ("", ("preset", *groups))
        rows = [
            f"| `--{(prefix + name).replace('_', '-')}` | {_cell(default)} | {_cell(text)} |"
            for name, default, text in _fields(classes[kind])
            if name not in hidden
        ]
        about = " ".join((ast.get_docstring(classes[kind]) or "").split())
        title = f"## `{group}`" if group else "## The run"
        table = "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])
        parts.append(f"{title}\n\n{about}\n\n{table}")
    return "\n\n".join(parts)


def presets() -> str:
    """The settings that each preset changes."""
    parts = []
    for name, (about, config) in PRESETS.items():
        changed = {k: v for k, _, v in compare_settings(Config(), config) if k != "preset"}
        rows = [f"| `--{k.replace('_', '-')}` | `{v}` |\n" for k, v in changed.items()]
        table = "".join(["| setting | value |\n|---|---|\n", *rows]) if rows else ""
        parts.append(f"### {name}\n\n{about[0].upper()}{about[1:]}.\n\n{table}")
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


def _fields(node: ast.ClassDef) -> list[tuple[str, str, str]]:
    """Name, default and documentation of a dataclass' fields."""
    found = []
    for field, text in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            default = f"`{ast.unparse(field.value)}`" if field.value else ""
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            about = " ".join(text.value.value.split()) if is_text else ""
            found.append((field.target.id, default, about))
    return found


def _cell(text: str) -> str:
    """Text for a table's cell, with the sources in full."""
    for letter, source in _SOURCES.items():
        text = text.replace(f" ({letter})", f" *({source})*")
    return text.replace("|", "\\|")
