"""Names of other packages that have no counterpart: importing one says what to use instead."""

from collections.abc import Callable, Mapping
from typing import Any

from dictionary_learning.errors import NoCounterpartError


def refusing(module: str, package: str, instead: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a module that refuses names, by what to use instead of each.

    Args:
        module: The module, for names that nobody has.
        package: The other package, as errors call it.
        instead: What to use, by the names there.
    """

    def __getattr__(name: str) -> Any:
        if name in instead:
            raise NoCounterpartError(name, package, instead[name])
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__
