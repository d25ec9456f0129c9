"""The document as Markdown; its figures are files beside it."""

from __future__ import annotations

from collections.abc import Sequence

from fastcifar.report.document import Block, Bullets, Details, Document, Figure, Heading, Paragraph, Table


def to_markdown(document: Document, figures: str) -> str:
    """`figures` is the folder of the drawings, relative to the file."""
    return "\n\n".join(_blocks(document.blocks, figures)) + "\n"


def _blocks(blocks: Sequence[Block], figures: str) -> list[str]:
    parts: list[str] = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f'<a id="{block.id}"></a>\n\n{"#" * block.level} {block.text}')
        elif isinstance(block, Paragraph):
            parts.append(f"> {block.text}" if block.kind else block.text)
        elif isinstance(block, Bullets):
            parts.append("\n".join(f"- {item}" for item in block.items))
        elif isinstance(block, Table):
            parts += [f'<a id="{block.id}"></a>\n\n{block.caption} ([CSV]({block.name}.csv))', _table(block)]
        elif isinstance(block, Figure):
            pictures = [f"![{_alt(panel.alt)}]({figures}/{panel.name}.svg)" for panel in block.panels]
            parts.append(f'<a id="{block.id}"></a>\n\n' + "\n".join(pictures) + f"\n\n{block.caption}")
        elif isinstance(block, Details):
            parts += [f"<details><summary>{block.summary}</summary>", *_blocks(block.blocks, figures), "</details>"]
    return parts


def _table(table: Table) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |" for row in rows
    )


def _alt(text: str) -> str:
    return text.replace("[", "(").replace("]", ")").replace("\n", " ")
