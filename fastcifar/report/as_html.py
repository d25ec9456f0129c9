"""The document as one HTML page that needs nothing beside itself: no script, no network, both colour schemes.

`templates/page.html` and `templates/page.css` hold what the page looks like. This module holds what a template cannot
do: it turns the marks of the texts into HTML, and the drawings into parts of the page.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastcifar.report.as_csv import to_csv
from fastcifar.report.document import NOTHING, Block, Document, Heading, Panel, Table
from fastcifar.report.markup import Piece, pieces

MARK = '<meta name="generator" content="fastcifar report">'
"""Tells our pages from others', which are not overwritten."""

Theme = Mapping[str, tuple[str, str, str]]
"""A colour as drawn -> the variable that stands for it, its value in the light and in the dark."""


def to_html(document: Document, theme: Theme) -> str:
    """The page.

    Args:
        document: the content.
        theme: which colours of the drawings follow the reader's colour scheme.

    Returns:
        The text of an HTML file.
    """
    environment = Environment(
        loader=PackageLoader("fastcifar.report"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
    )
    environment.filters |= {
        "mark": _marked,
        "attribute": _attribute,
        "kind": _kind,
        "csv_as_base64": _csv_as_base64,
        "width_style": _width_style,
        "inline_svg": lambda panel: _inline_svg(panel, theme),
    }
    return environment.get_template("page.html").render(
        document=document,
        sections=[block for block in document.blocks if isinstance(block, Heading) and block.level == 2],
        variables=lambda column: " ".join(f"--{entry[0]}: {entry[column]};" for entry in theme.values()),
        MARK=MARK,
        NOTHING=NOTHING,
    )


def _kind(block: Block) -> str:
    return type(block).__name__


def _attribute(text: str) -> Markup:
    return Markup(html.escape(text))


def _marked(text: str) -> Markup:
    return Markup("".join(_piece(piece) for piece in pieces(text)))


def _piece(piece: Piece) -> str:
    if piece.kind == "bold":
        return f"<b>{_marked(piece.text)}</b>"
    if piece.kind == "link":
        return f'<a href="{html.escape(piece.target)}">{_marked(piece.text)}</a>'
    escaped = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", html.escape(piece.text))
    return f"<code>{escaped}</code>" if piece.kind == "code" else escaped


def _csv_as_base64(table: Table) -> str:
    return base64.b64encode(to_csv(table).encode()).decode()


def _width_style(panel: Panel) -> Markup:
    width = re.search(r'viewBox="0 0 ([\d.]+)', panel.svg)
    return Markup(f' style="--width: {float(width[1]) * 4 / 3:.0f}px"' if width else "")  # points to pixels


def _inline_svg(panel: Panel, theme: Theme) -> Markup:
    """The drawing as a part of the page, in the colours of the page."""
    svg = panel.svg[panel.svg.index("<svg") :]
    for drawn, (variable, _, _) in theme.items():
        svg = re.sub(re.escape(drawn) + r"\b", f"var(--{variable})", svg, flags=re.IGNORECASE)
    # Every drawing has its own names: the page holds them all.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{panel.name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{panel.name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{panel.name}-\1"', svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(panel.alt)}" ', 1))
