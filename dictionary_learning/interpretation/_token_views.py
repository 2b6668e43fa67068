"""Texts whose tokens are colored by values, for notebooks and files.

The page is plain HTML: series are switched and tips shown by style sheets alone, since a notebook
that is not trusted, or a page on GitHub, runs no scripts. All texts are escaped.
"""

import dataclasses
import html
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dictionary_learning._border import as_tokenizer, checked
from dictionary_learning._disk import write_atomically
from dictionary_learning.errors import ConfigError
from dictionary_learning.interpretation._token_text import HALF, ids_of, texts_of

_SIGNS = {"\n": "↵", "\t": "→", "\r": "␍", "\u00a0": "⍽", "\u200b": "∅", "\ufeff": "∅"}
_MOST_SERIES = 24
"""Series that a view can switch between."""
_STYLE = """
.dl-tokens { font: 14px/1.9 system-ui, sans-serif; margin: 8px 0; max-width: 1000px; }
.dl-tokens .pick { display: flex; flex-wrap: wrap; gap: 4px 14px; margin-bottom: 6px; font-size: 13px; }
.dl-tokens .pick label { cursor: pointer; overflow-wrap: anywhere; }
.dl-tokens .head { font-weight: 600; margin-bottom: 4px; overflow-wrap: anywhere; }
.dl-tokens .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.dl-tokens .row { display: flex; gap: 12px; padding: 4px 0; border-top: 1px solid rgb(128 128 128 / .25); }
.dl-tokens .row .number { flex: 0 0 4em; text-align: right; opacity: .65; font-variant-numeric: tabular-nums; }
.dl-tokens .row .text { flex: 1; min-width: 0; }
.dl-tokens .t { position: relative; border-radius: 3px; padding: 2px 0; }
.dl-tokens .t:hover, .dl-tokens .t:focus { outline: 1.5px solid #3d8fd1; z-index: 2; }
.dl-tokens .t i { opacity: .55; font-style: normal; }
.dl-tokens .tip { display: none; position: absolute; left: 0; top: 100%; z-index: 9; padding: 4px 9px;
  border-radius: 6px; background: #1b1f24; color: #f2f3f4; font: 12.5px/1.5 ui-monospace, monospace; white-space: pre;
  width: max-content; max-width: 320px; overflow: hidden; pointer-events: none; }
.dl-tokens .t:hover .tip, .dl-tokens .t:focus .tip { display: block; }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; img-src data:"><title>Tokens</title>
<link rel="icon" href="data:,"><style>:root { color-scheme: light dark; } body { margin: 20px; padding-bottom: 160px; }</style></head>
<body>
%s
</body></html>
"""  # fmt: skip  # noqa: E501


@dataclasses.dataclass(frozen=True, repr=False)
class TokenView:
    """A text with colored tokens, which a notebook shows by itself."""

    html: str
    """A part of a page, which needs nothing else."""

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"TokenView of {len(self.html):,} characters: a notebook shows it, .save(path) writes a page"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a whole page, complete or not at all; returns its path."""
        target = Path(path)
        if not target.parent.is_dir():
            raise ConfigError(f"Got path='{target}', whose folder does not exist. Make it first.")
        write_atomically(target, partial(Path.write_text, data=_PAGE % self.html, encoding="utf-8"))
        return target


@checked()
def show_tokens(
    tokens: Sequence[str] | str,
    values: Any,
    *,
    tokenizer: Any = None,
    tips: Sequence[str] | None = None,
    largest: float | None = None,
    title: str = "",
) -> TokenView:
    """Returns a view of a text in which the color of each token says its value.

    Positive values are orange, negative ones blue. Hovering a token shows it, its value, and its
    tip.

    Args:
        tokens: The tokens, or a text that the tokenizer cuts.
        values: One number for each token; or several series, of which one is shown: a mapping from
            their names, or a tensor (series, tokens). In a tensor, a number that is not finite has
            no color.
        tokenizer: Of a text, one of transformers.
        tips: A text for each token, shown below its value.
        largest: The value of the full color; by default the largest of each series.
        title: What stands above.

    Raises:
        ConfigError: There are more or fewer values than tokens, or a text without a tokenizer.
        DataError: The text has half of a surrogate pair.
    """
    tokenizer = as_tokenizer(tokenizer)
    if isinstance(tokens, str):
        if tokenizer is None:
            raise ConfigError("Got a text, and no tokenizer. Give tokenizer=model.tokenizer, or a list of tokens.")
        tokens = texts_of(tokenizer, ids_of(tokenizer, tokens, add_special_tokens=True))
    series = _series(values)
    for name, numbers in {**series, "tips": tips}.items():
        if numbers is not None and len(numbers) != len(tokens):
            what = f" '{name}'" if name else ""
            raise ConfigError(
                f"Got {len(numbers)} values{what} for {len(tokens)} tokens. Give one for each token, also for special "
                "ones."
            )
    if largest is not None and not largest > 0:
        raise ConfigError(f"Got largest={largest}; the value of the full color must be above 0.")
    texts = [_text(tokens, numbers, tips, largest) for numbers in series.values()]
    return TokenView(HALF.sub("\ufffd", _fragment(list(series), texts, title)))  # a file could not hold it


def show_rows(rows: Sequence[tuple[Sequence[str], Sequence[float]]], title: str) -> TokenView:
    """Returns a view of several short texts, each with its largest value before it.

    The full color is the largest value of all.
    """
    full = max((abs(value) for _, values in rows for value in values if math.isfinite(value)), default=0.0)
    lines: list[str] = []
    for tokens, values in rows:
        number = f'<span class="number">{max(values, default=0.0):.4g}</span>'
        lines.append(f'<div class="row">{number}<div class="text">{_text(tokens, values, None, full)}</div></div>')
    head = f'<div class="head">{html.escape(title)}</div>'
    made = f'<form class="dl-tokens" method="dialog"><style>{_STYLE}</style>{head}{"".join(lines)}</form>'
    return TokenView(HALF.sub("\ufffd", made))


def visible(text: str) -> str:
    """Returns a token alone, with signs for what cannot be seen."""
    signs = "".join(_SIGNS.get(letter, letter) for letter in text)
    inner = signs.strip(" ")
    left = len(signs) - len(signs.lstrip(" "))
    right = len(signs) - left - len(inner)
    return "·" * left + inner + "·" * right if text else "∅"


def _series(values: Any) -> dict[str, list[float]]:
    if isinstance(values, Mapping):
        found = {str(name): _numbers(each) for name, each in values.items()}
    elif isinstance(values, Tensor) and values.ndim == 2:
        found = {str(i): _numbers(each) for i, each in enumerate(values)}
    else:
        found = {"": _numbers(values)}
    if not 1 <= len(found) <= _MOST_SERIES:
        raise ConfigError(f"Got {len(found)} series of values; a view has 1 to {_MOST_SERIES}. Make several views.")
    return found


def _numbers(values: Any) -> list[float]:
    try:
        return [float(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Got values of a {type(values).__name__}; give a number for each token ({error}).") from None


def _text(tokens: Sequence[str], values: Sequence[float], tips: Sequence[str] | None, largest: float | None) -> str:
    full = largest or max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    spans: list[str] = []
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        share = min(1.0, abs(value) / full) if full and math.isfinite(value) else 0.0
        color = "240 130 30" if value > 0 else "60 135 215"
        style = f' style="background:rgb({color}/{0.75 * share:.3f})"' if share else ""
        said = [
            f"{visible(token)}  {value:.4g}" if math.isfinite(value) else visible(token),
            *(tips[i : i + 1] if tips else []),
        ]
        tip = html.escape("\n".join(said))
        word = token.lstrip(" ") or token
        # spaces before a word have no color: where a line breaks they would be slivers at its end
        spans.append(token[: len(token) - len(word)])
        spans.append(f'<span class="t" tabindex="0"{style}>{_in_text(word)}<span class="tip">{tip}</span></span>')
    return "".join(spans)


def _in_text(token: str) -> str:
    return "".join(f"<i>{_SIGNS[c]}</i>" if c in _SIGNS else html.escape(c) for c in token)


def _fragment(names: Sequence[str], texts: Sequence[str], title: str) -> str:
    head = f'<div class="head">{html.escape(title)}</div>' if title else ""
    style = _STYLE
    if len(names) > 1:
        # a form of its own: radio buttons of two views are not of one group
        radio = '<label><input type="radio" name="series" value="{}"{}> {}</label>'
        buttons = [radio.format(i, " checked" if i == 0 else "", html.escape(name)) for i, name in enumerate(names)]
        head += f'<div class="pick">{"".join(buttons)}</div>'
        shown = ", ".join(f'.dl-tokens:has(input[value="{i}"]:checked) .s{i}' for i in range(len(names)))
        rules = f".dl-tokens.many .text {{ display: none; }}\n{shown} {{ display: block; }}"
        style += f"@supports selector(:has(a)) {{ {rules} }}"
    elif names[0]:
        head += f'<div class="pick">{html.escape(names[0])}</div>'
    body = "".join(f'<div class="text s{i}">{text}</div>' for i, text in enumerate(texts))
    many = " many" if len(names) > 1 else ""
    return f'<form class="dl-tokens{many}" method="dialog"><style>{style}</style>{head}{body}</form>'
