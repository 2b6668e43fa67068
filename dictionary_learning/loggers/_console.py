"""Metrics on the console: a progress bar and a line for each dictionary; plain lines in a file."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from dictionary_learning._plain import as_duration
from dictionary_learning._progress import say, shows_bars
from dictionary_learning.loggers._base import Evaluated, Figures

_SECONDS_BETWEEN_LINES = 15.0
_SHOWN = (("FVU", "fvu", ".4f"), ("L0", "l0", ".1f"))
_EVALUATED = (
    *_SHOWN,
    ("CE increase", "ce_increase", ".4f"),
    ("CE recovered (zero)", "ce_recovered_zero", ".4f"),
    ("never fired", "n_dead", ".0f"),
)
_MANY = 6
"""With more dictionaries than these, only the best and the worst are shown."""


class ConsoleLogger:
    """Shows progress, tokens per second, and each dictionary's FVU and L0."""

    def __init__(self, steps: int, names: Sequence[str]):
        self.steps = steps
        self._start = time.monotonic()
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._first: tuple[int, float] | None = None
        self._bars: list[Any] = []
        if shows_bars():
            self._bars = [tqdm(total=steps, unit="step", dynamic_ncols=True, desc="training")]
            self._bars += [
                tqdm(position=i, bar_format="  {desc}", desc=name) for i, name in enumerate(_lines_of(names), 1)
            ]

    def advance(self, step: int, tokens: int) -> None:
        """Moves the bar to a step; reads no metric, so it never waits for the device."""
        if self._bars:
            self._bars[0].update(step - self._bars[0].n)
            self._bars[0].set_postfix_str(f"{self._rate(tokens):,.0f} tokens/s", refresh=False)

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Shows the metrics; without a terminal at most every 15 seconds."""
        lines = _shortened(figures) or [f"{name}: {_show(values)}" for name, values in figures.items()]
        if self._bars:
            for bar, line in zip(self._bars[1:], lines, strict=False):
                bar.set_description_str(line)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or step == self.steps:
            self._last_line = time.monotonic()
            rate = f"{self._rate(tokens):,.0f} tokens/s{self._left(step)}"
            say(f"step {step:,} of {self.steps:,}, {rate}\n    " + "\n    ".join(lines))

    def log_evaluation(self, evaluated: Mapping[str, Evaluated], step: int, tokens: int) -> None:
        """Writes a line for each dictionary, which stays above the bars."""
        figures = {
            name: {key.removeprefix("eval/"): value for key, value in one.figures.items()}
            for name, one in evaluated.items()
        }
        lines = _shortened(figures) or [f"{name}: {_show(values, _EVALUATED)}" for name, values in figures.items()]
        for line in (f"held out, step {step:,}: {each}" for each in lines):
            if self._bars:
                self._bars[0].write(line, file=sys.stderr)
            else:
                say(line)

    def close(self) -> None:
        """Closes the bars; their last state stays on the screen."""
        for bar in self._bars:
            bar.close()

    def _left(self, step: int) -> str:
        """Returns the time that is left, as the steps since the first line let expect."""
        now = time.monotonic()
        self._first = self._first or (step, now)  # a run that is resumed begins later
        begin, start = self._first
        if step == begin or step >= self.steps:
            return ""
        return f", {as_duration((self.steps - step) * (now - start) / (step - begin))} left"

    def _rate(self, tokens: int) -> float:
        return tokens / max(time.monotonic() - self._start, 1e-9)


def _lines_of(names: Sequence[str]) -> Sequence[str]:
    return names if len(names) <= _MANY else [f"{len(names)} dictionaries"]


def _shortened(figures: Figures) -> list[str]:
    """Returns one line for many dictionaries, and none for few."""
    if len(figures) <= _MANY:
        return []
    (about,) = _lines_of(list(figures))
    known = [(one["fvu"], name) for name, one in figures.items() if "fvu" in one]
    if not known:
        return [f"{about}: no step yet"]
    # what is not a number is the worst
    known.sort(key=lambda one: math.inf if math.isnan(one[0]) else one[0])
    (best, first), (worst, last) = known[0], known[-1]
    return [f"{about}: FVU {best:.4f} (best, {first}) to {worst:.4f} (worst, {last})"]


def _show(values: Mapping[str, float], kinds: Sequence[tuple[str, str, str]] = _SHOWN) -> str:
    # a trainer that accumulates gradients has no metrics before its first step
    shown = [f"{label} {_in_words(values, key, form)}" for label, key, form in kinds if key in values]
    return "  ".join(shown) or "no step yet"


def _in_words(values: Mapping[str, float], key: str, form: str) -> str:
    """Returns a figure as text; where ablation costs nothing, no share of that can be recovered."""
    clean, ablated = (values.get(name, math.nan) for name in ("ce_clean", "ce_zero"))
    if math.isnan(values[key]) and key == "ce_recovered_zero" and ablated <= clean:
        return "nothing (zero ablation does not raise the cross-entropy)"
    return f"{values[key]:{form}}"
