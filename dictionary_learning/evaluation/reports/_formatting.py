"""Numbers and sentences of a report, formatted for people."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

Entries: TypeAlias = Sequence[Mapping[str, Any]]
"""The dictionaries of a report."""

DASH = "\u2014"

_SMALL = 5e-4  # four decimals would show no digit of such a value
_LARGE = 1e3


def finite(value: Any) -> float | None:
    """Returns the number, or None if it is missing or not finite."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _formatted(value: Any, form: str) -> str:
    number = finite(value)
    return DASH if number is None else f"{number:{form}}"


def decimal(value: Any, sign: str = "") -> str:
    """Returns "0.1234", with fewer decimals for large numbers and an exponent for tiny ones."""
    size = abs(finite(value) or 0)
    return _formatted(value, sign + (".1e" if 0 < size < _SMALL else ",.1f" if size >= _LARGE else ".4f"))


signed = partial(decimal, sign="+")  # "+0.1234"
tenths = partial(_formatted, form=",.1f")  # "32.0"
percent = partial(_formatted, form=".2%")  # "98.21%" for 0.9821
count = partial(_formatted, form=",.0f")  # "16,384"


def duration(seconds: Any) -> str:
    """Returns "2 h 5 min", "3 min 20 s" or "12.3 s"."""
    number = finite(seconds)
    if number is None:
        return DASH
    minutes, rest = divmod(number, 60)
    hours, minutes_of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours:.0f} h {minutes_of_hour:.0f} min"
    return f"{minutes:.0f} min {rest:.0f} s" if minutes else f"{number:.1f} s"


def anything(value: Any) -> str:
    """Returns a setting as text."""
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {anything(item)}" for key, item in value.items()) or DASH
    if isinstance(value, (list, tuple)):
        return ", ".join(map(anything, value)) or DASH
    return str(value)


def headline(report: Mapping[str, Any]) -> str:
    """Returns a sentence: what was evaluated, and on how many tokens."""
    dictionaries = report.get("dictionaries") or []
    data, model = report.get("data") or {}, report.get("model") or {}
    n, n_sites = len(dictionaries), len(sites_of(dictionaries))
    text = f"{n} {'dictionary' if n == 1 else 'dictionaries'} at {n_sites} {'site' if n_sites == 1 else 'sites'}"
    detail = ", ".join(str(model[key]) for key in ("revision", "dtype") if model.get(key))
    if name := f"{model.get('name') or ''}{f' ({detail})' if detail else ''}".strip():
        text += f" of {name}"
    if finite(data.get("n_tokens_scored")) is not None:
        text += f", evaluated on {count(data['n_tokens_scored'])} tokens"
        text += f" of {data['source']}" if data.get("source") else ""
    if data.get("ctx_len"):
        text += f", in contexts of {count(data['ctx_len'])}"
    if finite(report.get("ce_clean")) is not None and finite(data.get("n_tokens_predicted")) is not None:
        text += f"; cross-entropy over {count(data['n_tokens_predicted'])} predictions"
    return text + "."


def excluded(report: Mapping[str, Any]) -> str:
    """Returns a sentence: which tokens count in no metric; empty if the report does not tell."""
    data = report.get("data") or {}
    text = f"Excluded from training, splicing and metrics alike: {data['filter']}." if data.get("filter") else ""
    if n_nonfinite := finite(data.get("n_tokens_nonfinite")):
        text += f" Also excluded: {count(n_nonfinite)} tokens with a NaN or an infinity in their activations."
    return text.strip()


def sites_of(dictionaries: Entries) -> list[str]:
    """Returns the sites of the dictionaries, each once, in order."""
    return list(dict.fromkeys(str(d["site"]) for d in dictionaries))


def shortened(name: Any, limit: int = 36) -> str:
    """Returns a name, without its middle if it is long."""
    text = " ".join(str(name).split())
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}\u2026{text[-limit // 2 :]}"
