"""What the scripts of results share: their command line, and how a page is written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stamp import Stamp, paragraph, take_stamp


@dataclass(frozen=True)
class Arguments:
    """Of a script of results.

    Attributes:
        quick: a size that shows that everything runs.
        store: folder of what was measured.
        pages: folder of the pages.
    """

    quick: bool
    store: Path
    pages: Path


def arguments(doc: str) -> Arguments:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; its figures say nothing")
    parser.add_argument("--store", type=Path, help="default: build/results, or build/results-quick")
    parser.add_argument("--pages", type=Path, help="default: docs/results, or the store's own folder with --quick")
    options = parser.parse_args()
    store = options.store or default_store(quick=options.quick)
    return Arguments(
        options.quick, store, options.pages or (store / "pages" if options.quick else Path("docs/results"))
    )


def default_store(*, quick: bool) -> Path:
    """Where what was trained and measured is kept; quick work stands apart, since its files have the same names."""
    return Path("build/results-quick" if quick else "build/results")


@dataclass(frozen=True)
class Page:
    """One page of results and the figures behind it.

    Attributes:
        name: of its file, without the suffix.
        title: its first line.
        command: that makes it.
    """

    name: str
    title: str
    command: str

    def write(self, folder: Path, parts: Sequence[str], data: Any, stamp: Stamp | None = None) -> Path:
        """Writes the Markdown and, beside it, its data.

        Args:
            folder: that it goes to.
            parts: paragraphs and tables.
            data: what the page was made from, as JSON.
            stamp: of the measurements; ``None`` takes one now.
        """
        found = stamp or take_stamp()
        (folder / "data").mkdir(parents=True, exist_ok=True)
        facts = folder / "data" / f"{self.name}.json"
        facts.write_text(json.dumps({"stamp": asdict(found), **data}, separators=(",", ":")) + "\n", encoding="utf-8")
        end = f"{paragraph(found)} Written by `{self.command}`; the figures are in [{facts.name}](data/{facts.name})."
        page = folder / f"{self.name}.md"
        page.write_text("\n\n".join([f"# {self.title}", *parts, end]) + "\n", encoding="utf-8")
        return page


def between(file: Path, name: str, text: str) -> None:
    """Puts text between a file's marks ``<!-- NAME: ... -->`` and ``<!-- end of NAME -->``.

    Args:
        file: Markdown.
        name: of the marks.
        text: in place of what is there.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = file.read_text(encoding="utf-8").partition(f"<!-- {name}:")
    opening, closed, rest = rest.partition("-->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not begin or not closed or not end:
        raise ValueError(f"{file} has no marks of {name}")
    file.write_text(f"{before}{begin}{opening}{closed}{text}\n{end}{after}", encoding="utf-8")
