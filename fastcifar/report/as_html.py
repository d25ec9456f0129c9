"""The document as one HTML page that needs nothing beside itself: no script, no network, both colour schemes."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence

from fastcifar.report.as_csv import to_csv
from fastcifar.report.document import (
    NOTHING,
    Block,
    Bullets,
    Details,
    Document,
    Figure,
    Heading,
    Panel,
    Paragraph,
    Table,
)

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --soft: #5c5c66; --paper: #ffffff; --card: #f5f5f7; --line: #dcdce0;
  --grid: #e6e6ea; --link: #0b57a4; --good: #0a6b46; --off: #9a4a00; --warn: #fff4dc; --note: #eaf2fb; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ink: #e9e9ee; --soft: #a5a5b0; --paper: #16161a; --card: #202026;
  --line: #3a3a43; --grid: #32323a; --link: #7ab8f5; --good: #5fd0a0; --off: #f0a866; --warn: #3a2f17; --note: #1b2a3a;
  DARK } [data-name="confusion"] image { filter: brightness(1.8); } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --card: #fff; --line: #bbb;
  --grid: #ddd; --link: #000; --good: #0a6b46; --off: #9a4a00; --warn: #fff; --note: #fff; LIGHT } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.25rem 1rem 4rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.08rem; margin: 2rem 0 .5rem; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
code { font: .875em/1.4 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--card); padding: .1em .3em; border-radius: 3px; overflow-wrap: anywhere; }
.box { padding: .7rem .9rem; border-left: 4px solid var(--link); background: var(--note); border-radius: 0 6px 6px 0; }
.box.warning { border-color: var(--off); background: var(--warn); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; }
.table { margin: 1.25rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption, figcaption { text-align: left; color: var(--soft); font-size: .9rem; padding: .25rem 0 .45rem; }
caption b, figcaption b { color: var(--ink); }
th, td { text-align: left; vertical-align: top; padding: .38rem .6rem .38rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
tbody th { font-weight: 600; }
@media (min-width: 60rem) { .stacked tbody th { white-space: nowrap; } .wordy tbody th { white-space: normal; } }
.inside { color: var(--good); font-weight: 600; }
.above, .below, .differs { color: var(--off); font-weight: 600; }
.csv { font-size: .85rem; white-space: nowrap; }
figure { margin: 1.75rem 0; break-inside: avoid; }
.panels { display: flex; flex-wrap: wrap; gap: .75rem; }
.panel { flex: 0 1 var(--width); min-width: 0; max-width: 100%; overflow-x: auto; }
.panel svg { display: block; width: 100%; height: auto; max-width: var(--width); }
.panel.wide { flex-basis: 100%; }
.panel.wide svg { min-width: min(var(--width), 38rem); }
.panel text { text-rendering: geometricPrecision; }
.panel image { image-rendering: pixelated; }
@media (min-width: 60rem) { #table-runs td:nth-child(2) { min-width: 21rem; } }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
footer { margin-top: 3rem; color: var(--soft); font-size: .9rem; }
@media (max-width: 40rem) {
  .stacked thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .stacked table, .stacked caption, .stacked tbody, .stacked tr, .stacked th, .stacked td { display: block; }
  .stacked tr { margin: .6rem 0; padding: .5rem .75rem; background: var(--card); border-radius: 8px; }
  .stacked th, .stacked td { border: 0; padding: .12rem 0; }
  .stacked td { display: flex; justify-content: space-between; gap: 1rem; text-align: right; }
  .stacked td.none { display: none; }
  .stacked td::before { content: attr(data-label); color: var(--soft); text-align: left; flex: none; max-width: 45%; }
}
@media print { body { max-width: none; padding: 0; font-size: 10pt; } nav, .csv { display: none; }
  table { font-size: 8.5pt; } .panel:not(.wide) { flex-basis: 48%; }
  h2, h3, caption { break-after: avoid; } tr { break-inside: avoid; } .panel { overflow: visible; }
  .panel.wide svg { min-width: 0; } details::details-content { content-visibility: visible; } }
"""

MARK = '<meta name="generator" content="fastcifar report">'
"""Tells our pages from others', which are not overwritten."""

Theme = Mapping[str, tuple[str, str, str]]
"""A colour as drawn -> the variable that stands for it, its value in the light and in the dark."""


def to_html(document: Document, theme: Theme) -> str:
    """The page; `theme` says which drawn colours follow the colour scheme."""
    style = STYLE.replace("LIGHT", _variables(theme, 1)).replace("DARK", _variables(theme, 2))
    sections = [b for b in document.blocks if isinstance(b, Heading) and b.level == 2]
    links = "".join(f'<li><a href="#{b.id}">{_marked(b.text)}</a></li>' for b in sections)
    body = _blocks(document.blocks, theme)
    title = next(b for b in document.blocks if isinstance(b, Heading) and b.level == 1)
    heading = _block(title, theme)
    body = body.replace(heading, f'{heading}\n<nav aria-label="Sections"><ul>{links}</ul></nav>', 1)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{MARK}\n"
        f'<title>{html.escape(document.title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _variables(theme: Theme, column: int) -> str:
    return " ".join(f"--{entry[0]}: {entry[column]};" for entry in theme.values())


def _blocks(blocks: Sequence[Block], theme: Theme) -> str:
    return "\n".join(_block(block, theme) for block in blocks)


def _block(block: Block, theme: Theme) -> str:
    if isinstance(block, Heading):
        return f'<h{block.level} id="{block.id}">{_marked(block.text)}</h{block.level}>'
    if isinstance(block, Paragraph):
        kind = f' class="box {block.kind}"' if block.kind else ""
        return f"<p{kind}>{_marked(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_marked(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        panels = "\n".join(_panel(panel, theme) for panel in block.panels)
        return (
            f'<figure id="{block.id}">\n<div class="panels">\n{panels}\n</div>\n'
            f"<figcaption>{_marked(block.caption)}</figcaption>\n</figure>"
        )
    assert isinstance(block, Details)
    inner = _blocks(block.blocks, theme)
    return f"<details><summary>{_marked(block.summary)}</summary>\n{inner}\n</details>"


def _table(table: Table) -> str:
    content = base64.b64encode(to_csv(table).encode()).decode()
    link = f'<a class="csv" download="{table.name}.csv" href="data:text/csv;base64,{content}">CSV</a>'
    head = "".join(f'<th scope="col">{_marked(column)}</th>' for column in table.columns)
    body = "\n".join(f"<tr>{_cells(table, row)}</tr>" for row in table.rows)
    kind = "stacked" if table.stacked else "scroll"
    if max(len(row[0]) for row in table.rows) > 40:
        kind += " wordy"
    reachable = "" if table.stacked else f' tabindex="0" role="region" aria-label="{html.escape(table.name)}"'
    return (
        f'<div class="table {kind}" id="{table.id}"{reachable}>\n<table>\n<caption>{_marked(table.caption)} {link}'
        f"</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _cells(table: Table, row: Sequence[str]) -> str:
    cells = [f'<th scope="row">{_marked(row[0])}</th>']
    for column, text in zip(table.columns[1:], row[1:], strict=True):
        words = text.split(maxsplit=1)
        kind = words[0] if column == "verdict" and words else ""
        inner = f'<span class="{kind}">{_marked(text)}</span>' if kind else f"<span>{_marked(text)}</span>"
        empty = ' class="none"' if text == NOTHING else ""
        cells.append(f'<td data-label="{html.escape(column.replace("`", ""))}"{empty}>{inner}</td>')
    return "".join(cells)


def _marked(text: str) -> str:
    escaped = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", html.escape(text))
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escaped)
    return re.sub(r"\[([^\]]+)\]\((#[\w.-]+)\)", r'<a href="\2">\1</a>', escaped)


def _panel(panel: Panel, theme: Theme) -> str:
    svg = panel.svg[panel.svg.index("<svg") :]
    for drawn, (variable, _, _) in theme.items():
        svg = re.sub(re.escape(drawn) + r"\b", f"var(--{variable})", svg, flags=re.IGNORECASE)
    # Every drawing has its own names: the page holds them all.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{panel.name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{panel.name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{panel.name}-\1"', svg)
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    size = f' style="--width: {float(width[1]) * 4 / 3:.0f}px"' if width else ""  # points to pixels
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(panel.alt)}" ', 1)
    kind = "panel wide" if panel.wide else "panel"
    reachable = f' tabindex="0" role="region" aria-label="{html.escape(panel.name)}"' if panel.wide else ""
    return f'<div class="{kind}" data-name="{panel.name}"{size}{reachable}>{svg}</div>'
