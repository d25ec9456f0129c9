"""The page as a list of blocks, from which `as_html`, `as_markdown` and `as_csv` make files.

Texts hold three marks: `code`, **bold** and [link](#place).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PAGE, MARKDOWN, FIGURES = "index.html", "report.md", "figures"
"""The files that hold the document, and the folder of its drawings."""

NOTHING = "–"
"""A cell without a value."""


@dataclass(frozen=True)
class Heading:
    """Level 1 is the title. `id` is the place that links name."""

    level: int
    text: str
    id: str


@dataclass(frozen=True)
class Paragraph:
    """`kind` is empty, or `note` or `warning` for a box."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; where `stacked`, a row becomes a card on a narrow screen, else the table scrolls.

    Attributes:
        name: of its CSV, without the ending.
        rows: texts, a cell a column.
        data: the same for the CSV, in full precision, by column; None: as printed.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Sequence[Mapping[str, object]] | None = None
    stacked: bool = True

    @property
    def id(self) -> str:
        return self.name if self.name.startswith("table-") else f"table-{self.name}"

    @property
    def is_wordy(self) -> bool:
        """Whether the first column holds sentences, which may be broken into lines."""
        return max(len(row[0]) for row in self.rows) > 40


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure.

    Attributes:
        name: of its file, without the ending.
        alt: what it shows, for who cannot see it.
        svg: in fixed colours, on paper.
        wide: it is not to be shrunk to the width of a phone, but scrolled.
    """

    name: str
    alt: str
    svg: str
    wide: bool = False


@dataclass(frozen=True)
class Figure:
    name: str
    caption: str
    panels: Sequence[Panel]

    @property
    def id(self) -> str:
        return self.name if self.name.startswith("figure-") else f"figure-{self.name}"


@dataclass(frozen=True)
class Details:
    """Blocks that the page shows on demand."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Bullets | Table | Figure | Details


@dataclass
class Document:
    """`title` is what a browser writes on the tab."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def walk(self) -> list[Block]:
        """All blocks, those in details included."""

        def below(blocks: Sequence[Block]) -> list[Block]:
            found: list[Block] = []
            for block in blocks:
                found.append(block)
                if isinstance(block, Details):
                    found += below(block.blocks)
            return found

        return below(self.blocks)

    def tables(self) -> list[Table]:
        return [block for block in self.walk() if isinstance(block, Table)]

    def figures(self) -> list[Figure]:
        return [block for block in self.walk() if isinstance(block, Figure)]
