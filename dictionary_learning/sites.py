"""Sites: the places in a model where activations are read and written.

A site is a module's path and a side of it: `"model.layers.10:out"` is what layer 10 returns,
`"model.layers.10.mlp:in"` what its MLP is given. Without a side, `out` is meant. A module that returns a tuple, or takes
several inputs, has a site for each: `"model.layers.10.self_attn:out[1]"`; without a number the first is meant.
`"model.layers.10:heads"` is what the layer's attention heads return, before they are projected back: the model finds where
that is. `"embedding"` is the model's input embedding, whatever its module is called.

Patterns name several modules at once. Each part between dots is matched as a file name is (`*`, `?`, `[0-3]`); `**`
stands for any number of parts. The path may leave out what comes before it, as the prefix of the base model:
`"h.*.attn"` finds `"transformer.h.0.attn"` and its like. Sites come in natural order: layer 2 before layer 10.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from dictionary_learning.errors import SiteError, did_you_mean

Side = Literal["in", "out", "heads"]
Sides = Literal["in", "out", "heads", "in_and_out"]
"""What is meant where only modules are named; `in_and_out` is two sites for each."""


class Site(NamedTuple):
    """A module's path, the side of it that is read or written, and which of the values there."""

    path: str
    """The module's dotted path in the model, as `named_modules()` gives it; "" is the model itself."""
    side: Side = "out"
    """`in`: what the module is given; `out`: what it returns; `heads`: the outputs of the attention heads inside it."""
    index: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]
    """Which of several: the n-th input (positions first, then keywords as `forward` lists them), or the n-th of a tuple."""

    def __str__(self) -> str:
        return f"{self.path}:{self.side}" + (f"[{self.index}]" if self.index else "")

    @classmethod
    def parse(cls, text: "str | Site", default: Side = "out") -> "Site":
        """Reads "path", "path:in", "path:out", "path:out[1]" or "path:heads".

        Raises:
            SiteError: what stands behind the colon is none of these, or a list of hidden states is meant.
        """
        if isinstance(text, Site):
            return text
        path, colon, side = text.partition(":")
        _refuse_hidden_states(path)
        if not colon:
            return cls(path, default)
        match = re.fullmatch(r"(in|out)(?:\[(\d+)\])?|heads", side)
        if match is None:
            raise SiteError(
                f"Site '{text}' ends in ':{side}'; a site ends in ':in' or ':out', as ':out[1]' for the second of a tuple, "
                f"or in ':heads'. Write '{path}:out'."
            )
        named: dict[str | None, Side] = {"in": "in", "out": "out", None: "heads"}
        return cls(path, named[match[1]], int(match[2] or 0))


def expand(
    patterns: "str | Site | Sequence[str | Site]",
    paths: Iterable[str],
    *,
    model: str = "the model",
    default: Side = "out",
) -> list[Site]:
    """Returns the sites that the patterns name, each once: as listed, and each pattern's matches in natural order.

    Args:
        patterns: a site, a pattern, or several of them.
        paths: the paths of the model's modules.
        model: what to call the model in an error.
        default: the side of a pattern that names none.

    Raises:
        SiteError: a pattern finds no module, or none was given.
    """
    if isinstance(patterns, (str, Site)):
        patterns = [patterns]
    paths = list(paths)
    found: dict[Site, None] = {}
    for pattern in patterns:
        site = Site.parse(pattern, default)
        matches = [site.path] if site.path in paths else sorted(_matches(site.path, paths), key=natural_key)
        if not matches:
            raise SiteError(_not_found(site, paths, model))
        found.update((site._replace(path=path), None) for path in matches)
    if not found:
        raise SiteError("No site was named. Name a module of the model, such as 'model.layers.10:out'.")
    return list(found)


def natural_key(text: str) -> list[tuple[bool, int, str]]:
    """Returns a sort key under which "layers.2" comes before "layers.10"."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]


def _refuse_hidden_states(path: str) -> None:
    match = re.search(r"(?:^|\.)hidden_states(?:\[|\.|_)?(-?\d+)?\]?$", path)
    if match is None:
        return
    if match[1] is None or int(match[1]) < 0:
        meant = "Name the module whose output is meant, as 'model.layers.10:out'."
    elif int(match[1]) == 0:
        meant = "hidden_states[0] is the embedding: name 'embedding', or the first layer's ':in'."
    else:
        n = int(match[1])
        meant = (
            f"hidden_states[{n}] is the output of layer {n - 1}, which layer {n} is given: name 'layers.{n - 1}:out'; "
            f"but where layer {n - 1} is the last, most models return it after the final norm: name that norm's ':out'."
        )
    raise SiteError(f"Site '{path}' counts hidden states, of which there is one more than there are layers. {meant}")


def _matches(pattern: str, paths: list[str]) -> list[str]:
    parts = pattern.split(".")
    whole = [path for path in paths if _match_parts(path.split("."), parts)]
    # a pattern may start below the base model's prefix, but an exact start wins
    return whole or [path for path in paths if _match_parts(path.split("."), ["**", *parts])]


def _match_parts(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_match_parts(path[n:], pattern[1:]) for n in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _match_parts(path[1:], pattern[1:])


def _not_found(site: Site, paths: list[str], model: str) -> str:
    number = re.fullmatch(r"(.*\.)(\d+)(\..*)?", site.path)
    message = f"Site '{site}' is not in {model}"
    if number:
        siblings = {p.removeprefix(number[1]).split(".")[0] for p in paths if p.startswith(number[1])}
        count = sum(s.isdigit() for s in siblings)
        if count and number[2] not in siblings:
            return f"{message}: '{number[1][:-1]}' has {count} entries, 0 to {count - 1}. Choose one of those."
    near = did_you_mean(site.path, [p for p in paths if p]) or did_you_mean(
        site.path, {p.split(".", 1)[-1] for p in paths}
    )
    tops = ", ".join(sorted((p for p in paths if p and p.count(".") <= 1), key=natural_key)[:8])
    return f"{message}.{near or f' Its modules begin with: {tops}. A pattern such as **.mlp finds modules anywhere.'}"
