"""Data as scripts: a page that is opened from a disk may load these, and nothing else."""

import base64
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

DIGITS = 4
"""Significant digits of numbers, as many as a page shows."""


def write_script(path: Path, key: str, document: Any) -> None:
    """Writes a script that hands a document to the page under a key."""
    path.write_text(f"receive({as_script(key)}, {as_script(document)});\n", encoding="ascii")


def as_script(document: Any) -> str:
    """Returns JSON that is safe in a script: in ASCII, and without what could end the element."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed(column: Float[Tensor, "n"]) -> str:
    """Returns 32-bit numbers, the lowest byte first, in base64."""
    return base64.b64encode(column.detach().cpu().float().numpy().astype("<f4").tobytes()).decode("ascii")


def rounded(values: Iterable[float]) -> list[float | None]:
    """Returns numbers with few digits; None for those that are not finite."""
    return [number(value) for value in values]


def number(value: float) -> float | None:
    """Returns a number with few digits, or None if it is not finite."""
    short = float(f"{value:.{DIGITS}g}")
    if not math.isfinite(short):
        return None
    return int(short) if short == int(short) else short
