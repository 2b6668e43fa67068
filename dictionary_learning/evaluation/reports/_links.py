"""Links from a report to pages beside it, as to those of the latents."""

import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Link(NamedTuple):
    """A page about the same dictionaries."""

    text: str
    address: str
    """Relative to the report."""


def links(report: Mapping[str, Any]) -> list[Link]:
    """Returns the links of a report; whatever a file says, they lead to paths beside it."""
    found: Mapping[str, Any] = report.get("links") or {}
    return [Link(text, "./" + urllib.parse.quote(str(path))) for text, path in found.items()]


def path_from(folder: Path, page: Path) -> str:
    """Returns the path of a page as seen from a folder."""
    return Path(os.path.relpath(page, folder)).as_posix()
