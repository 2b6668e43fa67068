"""Sites: the places in a model where activations are read and written.

A site is a module's path and a side of it: `"model.layers.10:out"` is the output of layer 10,
`"model.layers.10.mlp:in"` is the input of its MLP. The default side is `out`. Where a module
returns a tuple or has several inputs, `"model.layers.10.self_attn:out[1]"` is the second; the
default is the first. Where a forward pass runs a module several times, as ALBERT its shared layer,
`"encoder.layer:out@2"` is its third call. `"model.layers.10:heads"` is the outputs of the layer's
attention heads before the output projection, and `"embedding"` the input embedding, wherever they
are in the model.

A pattern names several modules. Each part between dots is matched like a file name (`*`, `?`,
`[ab]`), but that numbers are numbers: `[8-12]` is 8 to 12, and `[0,3,10-12]` those five. `**`
matches any number of parts. The first parts may be left out: `"h.*.attn"` finds
`"transformer.h.0.attn"`. Matches come in natural order: layer 2 before layer 10.
"""

import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from dictionary_learning._types import SitesLike
from dictionary_learning.errors import SiteError, did_you_mean

_NUMBERS = re.compile(r"\[((?=\d+[-,])\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]")
"""Brackets with a range or a list of numbers. "[12]" stays a file name's: 1 or 2."""
_MOST = 9_999
"""The largest number of a module in a list of modules that a range reaches."""
Side = Literal["in", "out", "heads"]
Sides = Literal["in", "out", "heads", "in_and_out"]
"""The side of modules that name none; `in_and_out` means two sites for each."""
V = TypeVar("V")


class _SiteFields(NamedTuple):
    path: str
    """The module's dotted path in the model, as in `named_modules()`; "" is the model itself."""
    side: Side = "out"
    """`in`: the module's input; `out`: its output; `heads`: outputs of attention heads in it."""
    index: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]
    """The n-th value of a tuple, or the n-th input (positional ones first, then keywords in the
    order of `forward`'s parameters)."""
    call: int | None = None
    """The n-th call of the module in a forward pass; None for all calls."""


class Site(_SiteFields):
    """A place in a model: a module's path, a side, and which value. Wrong ones raise SiteError."""

    __slots__ = ()

    def __new__(cls, path: str, side: Side = "out", index: int = 0, call: int | None = None) -> "Site":
        # plain data from files may be anything
        words: tuple[Any, ...] = (path, side)
        numbers: tuple[Any, ...] = (index, 0 if call is None else call)
        right = all(isinstance(word, str) for word in words) and all(isinstance(n, int) and n >= 0 for n in numbers)
        if not right or side not in get_args(Side) or (side == "heads" and index):
            raise SiteError(
                f"Got Site({path!r}, {side!r}, {index!r}, {call!r}). It needs the path of a module, a side ('in', "
                "'out' or 'heads'), and from 0 on the index in a tuple (not with 'heads') and the call."
            )
        return super().__new__(cls, path, side, index, call)

    def __str__(self) -> str:
        index, call = f"[{self.index}]" if self.index else "", "" if self.call is None else f"@{self.call}"
        return f"{self.path}:{self.side}{index}{call}"

    @classmethod
    def parse(cls, text: "str | Site", default: Side = "out") -> "Site":
        """Reads "path", "path:in", "path:out", "path:out[1]", "path:out@2" or "path:heads".

        Raises:
            SiteError: the text is none of these, or names a list of hidden states.
        """
        if isinstance(text, Site):
            return text
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SiteError(f"Got {text!r} as a site. Write a string such as 'model.layers.10:out', or a Site.")
        path, colon, side = text.removeprefix("_orig_mod.").partition(":")  # of torch.compile
        _refuse_hidden_states(path)
        if not colon:
            return cls(path, default)
        match = re.fullmatch(r"(?:(in|out)(?:\[(\d+)\])?|heads)(?:@(\d+))?", side)
        if match is None:
            raise SiteError(
                f"Site '{text}' ends in ':{side}'; a site ends in ':in', ':out' or ':heads', with ':out[1]' for the "
                f"second value of a tuple and ':out@1' for the module's second call. Write '{path}:out'."
            )
        named: dict[str | None, Side] = {"in": "in", "out": "out", None: "heads"}
        return cls(path, named[match[1]], int(match[2] or 0), None if match[3] is None else int(match[3]))


class SiteDict(dict[Site, V]):
    """Values by site. A string finds it: `values["model.layers.3"]`, or `values["layers.3"]`."""

    def __init__(self, values: Mapping[str, V] | Mapping[Site, V] | Iterable[tuple[Site | str, V]] = ()):
        super().__init__({Site.parse(site): value for site, value in dict(values).items()})

    def _key(self, key: Any) -> Any:
        if not isinstance(key, str):
            return key
        site = Site.parse(key)
        if super().__contains__(site):
            return site
        near = [s for s in self if s[1:] == site[1:] and _matches(site.path, [s.path])]
        return near[0] if len(near) == 1 else site

    def __getitem__(self, key: Site | str) -> V:
        try:
            return super().__getitem__(self._key(key))
        except KeyError:
            known = ", ".join(map(str, self)) or "(there are none)"
            raise KeyError(f"'{key}' is not among the sites {known}.") from None

    def __setitem__(self, key: Site | str, value: V) -> None:
        super().__setitem__(self._key(Site.parse(key) if isinstance(key, Site) else key), value)

    def __delitem__(self, key: Site | str) -> None:
        self[key]  # raises for a key that is not here
        super().__delitem__(self._key(key))

    def pop(self, key: Site | str, *default: Any) -> Any:
        """Removes a site and returns its value, or the default."""
        if default and key not in self:
            return default[0]
        value = self[key]
        del self[key]
        return value

    # those of dict look keys up as they are
    setdefault = MutableMapping.setdefault
    update = MutableMapping.update

    def __or__(self, other: Any) -> Any:
        merged = SiteDict(self)
        merged.update(other)
        return merged

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def copy(self) -> "SiteDict[V]":
        """Returns a copy; the values are shared."""
        return SiteDict(self)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(self._key(key))

    def get(self, key: Site | str, default: Any = None) -> Any:
        """Returns the value at a site, or the default."""
        return super().get(self._key(key), default)


def parse_sites(sites: SitesLike, default: Side = "out") -> list[Site]:
    """Returns sites or patterns as a list; what is neither site nor string raises SiteError."""
    single = isinstance(sites, (str, Site)) or not hasattr(sites, "__iter__")  # a Site is a tuple, too
    return [Site.parse(site, default) for site in cast("Iterable[str | Site]", [sites] if single else sites)]


def expand(patterns: SitesLike, paths: Iterable[str], *, model: str = "the model", default: Side = "out") -> list[Site]:
    """Returns the sites that the patterns name, each once; each pattern's matches in natural order.

    Args:
        patterns: a site, a pattern, or several of them.
        paths: the paths of the model's modules.
        model: the model's name in errors.
        default: the side of a pattern that names none.

    Raises:
        SiteError: a pattern finds no module, or there is no pattern.
    """
    paths = list(paths)
    found: dict[Site, None] = {}
    for site in parse_sites(patterns, default):
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
            f"hidden_states[{n}] is the output of layer {n - 1} and the input of layer {n}: name 'layers.{n - 1}:out'. "
            f"Where layer {n - 1} is the last, most models return it after the final norm: name that norm's ':out'."
        )
    raise SiteError(f"Site '{path}' counts hidden states; there is one more of them than layers. {meant}")


def _matches(pattern: str, paths: list[str]) -> list[str]:
    parts = pattern.split(".")
    whole = [path for path in paths if _match_parts(path.split("."), parts)]
    # a pattern may leave out the base model's prefix, but a match of the whole path wins
    return whole or [path for path in paths if _match_parts(path.split("."), ["**", *parts])]


def _match_parts(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_match_parts(path[n:], pattern[1:]) for n in range(len(path) + 1))
    return bool(path) and bool(_part(pattern[0]).fullmatch(path[0])) and _match_parts(path[1:], pattern[1:])


@functools.cache
def _part(pattern: str) -> re.Pattern[str]:
    """Returns the expression of one part of a pattern: a file name's, with ranges of numbers."""
    expression = ""
    for number, piece in enumerate(_NUMBERS.split(pattern)):
        if number % 2:  # the inside of brackets
            expression += f"(?:{'|'.join(_listed(piece)) or '(?!)'})"
        else:
            expression += fnmatch.translate(piece)[4:].rpartition(")")[0]  # the inside of (?s:...)\Z
    return re.compile(expression, re.DOTALL)


def _listed(numbers: str) -> list[str]:
    """Returns the numbers of "0,3,10-12"."""
    # as a file name's class, [8-12] would be the characters 8 to 1, and 2: no layer or another one
    ends = [part.partition("-")[::2] for part in numbers.split(",")]
    return [str(n) for first, last in ends for n in range(int(first), min(int(last or first), _MOST) + 1)]


def _not_found(site: Site, paths: list[str], model: str) -> str:
    number = re.fullmatch(r"(.*\.)(\d+)(\..*)?", site.path)
    message = f"Site '{site}' is not in {model}"
    if number:
        siblings = {p.removeprefix(number[1]).split(".")[0] for p in paths if p.startswith(number[1])}
        # a module at two places has the path of the first, so numbers may be missing
        numbers = sorted(map(int, filter(str.isdigit, siblings)))
        if numbers and number[2] not in siblings:
            listed = f", 0 to {numbers[-1]}" if len(numbers) == numbers[-1] + 1 else f": {', '.join(map(str, numbers))}"
            return f"{message}: '{number[1][:-1]}' has {len(numbers)} entries{listed}. Choose one of those."
    without_prefix = {p.split(".", 1)[-1] for p in paths}
    near = did_you_mean(site.path, [p for p in paths if p]) or did_you_mean(site.path, without_prefix)
    tops = ", ".join(sorted((p for p in paths if p and p.count(".") <= 1), key=natural_key)[:8])
    return f"{message}.{near or f' Its modules begin with: {tops}. A pattern such as **.mlp finds modules anywhere.'}"
