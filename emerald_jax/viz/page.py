"""A report as one HTML file that opens from disk: pictures inside, no script, no request."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from string import Template
from typing import NamedTuple


class Table(NamedTuple):
    """Rows of text; ``marked`` ones are bold.

    Attributes:
        rows: cells, the first of each row is its name.
        marked: indices of rows that stand out.
        folded: a title under which the table is folded away; empty shows it.
    """

    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()
    folded: str = ""


class Picture(NamedTuple):
    """A PNG or GIF.

    Attributes:
        data: the file's bytes.
        alt: what it shows, for those who cannot see it.
        wide: keep its size and scroll, instead of shrinking it to the page.
    """

    data: bytes
    alt: str
    wide: bool = False


class Section(NamedTuple):
    """One part of a report.

    Attributes:
        title: its heading.
        about: one or two sentences on what is to be seen.
        parts: tables and pictures.
        missing: why there is nothing to be seen; empty when there is.
    """

    title: str
    about: str = ""
    parts: tuple[Table | Picture, ...] = ()
    missing: str = ""


def html_report(title: str, subtitle: str, sections: Iterable[Section]) -> str:
    """The whole page.

    Args:
        title: of the page.
        subtitle: one line under it.
        sections: in order.

    Returns:
        HTML that needs nothing else.
    """
    sections = list(sections)
    page = resources.files("emerald_jax.viz").joinpath("report.html").read_text(encoding="utf-8")
    links = (f'<a href="#s{i}">{html.escape(s.title)}</a>' for i, s in enumerate(sections))
    return Template(page).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        contents="\n".join(links),
        sections="\n".join(_section(i, s) for i, s in enumerate(sections)),
    )


def settings_table(values: Mapping[str, object], defaults: Mapping[str, object] | None) -> Table:
    """Every setting, those that differ from the preset's marked and first.

    Args:
        values: full name to value.
        defaults: the preset's; None marks nothing.
    """
    changed = [n for n in values if defaults is not None and defaults.get(n) != values[n]]
    names = [*changed, *(name for name in values if name not in changed)]
    rows = [(name, str(values[name])) for name in names]
    title = f"{len(values)} settings, {len(changed)} other than the preset's"
    return Table(rows, frozenset(range(len(changed))), title)


def _section(index: int, section: Section) -> str:
    parts = [f'<h2 id="s{index}">{html.escape(section.title)}</h2>']
    if section.about and not section.missing:
        parts.append(f"<p>{html.escape(section.about)}</p>")
    if section.missing:
        parts.append(f'<p class="none">Not shown: {html.escape(section.missing)}.</p>')
    parts += [_table(p) if isinstance(p, Table) else _picture(p) for p in section.parts]
    return "\n".join(parts)


def _picture(picture: Picture) -> str:
    kind = "gif" if picture.data.startswith(b"GIF8") else "png"
    data = base64.b64encode(picture.data).decode()
    image = f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(picture.alt)}">'
    return f'<div class="wide">{image}</div>' if picture.wide else image


def _table(table: Table) -> str:
    rows = []
    for i, (name, *cells) in enumerate(table.rows):
        kind = ' class="changed"' if i in table.marked else ""
        inside = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr{kind}><th>{html.escape(name)}</th>{inside}</tr>")
    body = f'<div class="wide"><table>{"".join(rows)}</table></div>'
    if not table.folded:
        return body
    return f"<details><summary>{html.escape(table.folded)}</summary>{body}</details>"
