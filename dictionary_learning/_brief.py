"""Results in a line: shapes, counts and the largest values, instead of all numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

_FEW = 6
"""Numbers of a tensor, or parts of a list, that are shown themselves."""
_LONGEST = 60
"""Characters of a text."""


def brief(self: Any) -> str:
    """Returns a named tuple with each field in short; as its `__repr__`."""
    return f"{type(self).__name__}({', '.join(f'{name}={_short(getattr(self, name))}' for name in self._fields)})"


def top_few(values: Tensor, *names: Sequence[Any]) -> str:
    """Returns the largest values in either direction, with their names: "12 at 3: +0.25, ..."."""
    places: list[int] = values.abs().topk(min(_FEW // 2, len(values))).indices.tolist()
    parts = [f"{' at '.join(str(each[place]) for each in names)}: {float(values[place]):+.3g}" for place in places]
    return ", ".join([*parts, "..."] if len(values) > len(places) else parts)


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.numel() <= _FEW and not value.is_meta:
            return str(value.tolist())
        return f"<{str(value.dtype).removeprefix('torch.')} {list(value.shape)}>"
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST else f"{value[: _LONGEST - 3]}...")
    if hasattr(value, "_fields"):
        return repr(value) if type(value).__repr__ is brief else brief(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_short(part)}' for key, part in value.items())}}}"  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        shown = ", ".join(map(_short, value[:_FEW]))  # pyright: ignore[reportUnknownArgumentType]
        return f"[{shown}]" if len(value) <= _FEW else f"[{shown}, ... {len(value)} in all]"  # pyright: ignore[reportUnknownArgumentType]
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
