"""Placeholder until the renderers are in."""

import json
from pathlib import Path
from typing import Any


def write_report(report: dict[str, Any], folder: Any, formats: tuple[str, ...] = ("json",)) -> dict[str, Path]:
    """Writes report.json."""
    path = Path(folder) / "report.json"
    path.write_text(json.dumps(report, indent=2))
    return {"json": path, "html": path}
