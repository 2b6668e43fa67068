"""The report as data."""

import json
import math
from collections.abc import Mapping
from typing import Any

from dictionary_learning.evaluation.reports.base import RENDERERS


@RENDERERS.register("json")
def render_json(report: Mapping[str, Any]) -> str:
    """Returns strict JSON: figures in full precision, and null for those that are not finite."""
    return json.dumps(_strict(report), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
