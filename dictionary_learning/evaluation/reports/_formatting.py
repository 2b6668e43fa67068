"""Numbers and sentences of a report, formatted for people."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

DASH = "\u2014"

_SMALL = 5e-4  # four decimals would show no digit of such a value
_LARGE = 1e3
_SECONDS = {"h": 3600, "min": 60}


def finite(value: Any) -> float | None:
    """Returns the number, or None if it is missing or not finite."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def decimal(value: Any, sign: str = "") -> str:
    """Returns "0.1234", with fewer decimals for large numbers and an exponent for tiny ones."""
    number = finite(value)
    if number is not None and 0 < abs(number) < _SMALL:
        return f"{number:{sign}.1e}"
    return _formatted(value, f"{sign},.1f" if abs(number or 0) >= _LARGE else f"{sign}.4f")


def signed(value: Any) -> str:
    """Returns "+0.1234"."""
    return decimal(value, "+")


def tenths(value: Any) -> str:
    """Returns "32.0"."""
    return _formatted(value, ",.1f")


def percent(value: Any) -> str:
    """Returns "98.21%" for 0.9821."""
    return _formatted(value, ".2%")


def count(value: Any) -> str:
    """Returns "16,384"."""
    return _formatted(value, ",.0f")


def duration(seconds: Any) -> str:
    """Returns "2 h 5 min", "3 min 20 s" or "12.3 s"."""
    number = finite(seconds)
    if number is None:
        return DASH
    if number < _SECONDS["min"]:
        return f"{number:.1f} s"
    if number < _SECONDS["h"]:
        return f"{number // _SECONDS['min']:.0f} min {number % _SECONDS['min']:.0f} s"
    return f"{number // _SECONDS['h']:.0f} h {number % _SECONDS['h'] // _SECONDS['min']:.0f} min"


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


def plural(n: int, noun: str) -> str:
    """Returns "1 site" or "2 sites", and "2 dictionaries"."""
    if n == 1:
        return f"1 {noun}"
    return f"{n} {noun[:-1]}ies" if noun.endswith("y") else f"{n} {noun}s"


def headline(report: Mapping[str, Any]) -> str:
    """Returns a sentence: what was evaluated, and on how many tokens."""
    dictionaries, data = report.get("dictionaries") or [], report.get("data") or {}
    text = f"{plural(len(dictionaries), 'dictionary')} at {plural(len(sites_of(dictionaries)), 'site')}"
    if model := model_name(report):
        text += f" of {model}"
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
    n_nonfinite = finite(data.get("n_tokens_nonfinite"))
    if n_nonfinite:
        text += f" Also excluded: {count(n_nonfinite)} tokens with a NaN or an infinity in their activations."
    return text.strip()


def model_name(report: Mapping[str, Any]) -> str:
    """Returns "name (revision, dtype)", or an empty string."""
    model = report.get("model") or {}
    detail = ", ".join(str(model[key]) for key in ("revision", "dtype") if model.get(key))
    return f"{model.get('name') or ''}{f' ({detail})' if detail else ''}".strip()


def sites_of(dictionaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the sites of the dictionaries, each once, in order."""
    return list(dict.fromkeys(str(d["site"]) for d in dictionaries))


def names_of(dictionaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the name of each dictionary."""
    return [str(d["name"]) for d in dictionaries]


def shortened(name: Any, limit: int = 36) -> str:
    """Returns a name, without its middle if it is long."""
    text = " ".join(str(name).split())
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}\u2026{text[-limit // 2 :]}"


def _formatted(value: Any, form: str) -> str:
    number = finite(value)
    return DASH if number is None else f"{number:{form}}"
