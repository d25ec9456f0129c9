"""The document as Markdown; its figures are files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastcifar.report.document import Block, Bullets, Details, Document, Figure, Heading, Paragraph, Table
from fastcifar.report.markup import Piece, pieces, plain

_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
"""Not every reader of Markdown takes a backslash before these."""


def to_markdown(document: Document, figures: str) -> str:
    """The document as Markdown.

    Args:
        document: the content.
        figures: the folder of the drawings, relative to the file.

    Returns:
        The text of the file. What somebody else wrote (see `markup`) is text in it, whatever characters it has.
    """
    return "\n\n".join(_blocks(document.blocks, figures)) + "\n"


def _blocks(blocks: Sequence[Block], figures: str) -> list[str]:
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f'<a id="{block.id}"></a>\n\n{"#" * block.level} {_marked(block.text)}')
        elif isinstance(block, Paragraph):
            parts.append(f"> {_marked(block.text)}" if block.kind else _marked(block.text))
        elif isinstance(block, Bullets):
            parts.append("\n".join(f"- {_marked(item)}" for item in block.items))
        elif isinstance(block, Table):
            link = f"([CSV]({block.name}.csv))"
            parts += [f'<a id="{block.id}"></a>\n\n{_marked(block.caption)} {link}', _table(block)]
        elif isinstance(block, Figure):
            pictures = [f"![{_marked(plain(panel.alt))}]({figures}/{panel.name}.svg)" for panel in block.panels]
            parts.append(f'<a id="{block.id}"></a>\n\n' + "\n".join(pictures) + f"\n\n{_marked(block.caption)}")
        elif isinstance(block, Details):
            summary = f"<details><summary>{_marked(block.summary)}</summary>"
            parts += [summary, *_blocks(block.blocks, figures), "</details>"]
    return parts


def _table(table: Table) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(_marked(cell, in_table=True) for cell in row) + " |" for row in rows)


def _marked(text: str, *, in_table: bool = False) -> str:
    return "".join(_piece(piece, in_table) for piece in pieces(text))


def _piece(piece: Piece, in_table: bool) -> str:
    if piece.kind == "bold":
        return f"**{_marked(piece.text, in_table=in_table)}**"
    if piece.kind == "link":
        return f"[{_marked(piece.text, in_table=in_table)}]({piece.target})"
    if piece.kind == "plain":
        return _ENTITIES.get(piece.text, f"\\{piece.text}")
    text = piece.text
    if in_table:
        text = text.replace("|", r"\|").replace("\n", " ")
    if piece.kind == "code":
        longest = max((len(run) for run in re.findall("`+", text)), default=0)
        fence, space = "`" * (longest + 1), " " * (text[0] == "`" or text[-1] == "`")
        return f"{fence}{space}{text}{space}{fence}"
    return text
