"""How every page is made: one set of templates, and a file that is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from splitboard.contract.folder import write_whole


def templates() -> Environment:
    """The package's templates; values are escaped, and one that is missing is an error."""
    return Environment(
        loader=PackageLoader("splitboard.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(target: Path, page: str) -> None:
    """Writes a page, whole or not at all; folders are made.

    Raises:
        UserError: it cannot be written.
    """
    write_whole(target, page)
