"""Names of a package that are imported when they are first used."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Returns the `__getattr__` and `__dir__` of a package or module, by the module of each name.

    `dir` shows what `__all__` lists. Submodules are found as attributes, as after `import
    package.submodule`.
    """

    def __getattr__(name: str) -> object:
        if name in modules:
            value = getattr(importlib.import_module(modules[name]), name)
        elif not name.startswith("_") and hasattr(sys.modules[package], "__path__") and _is_module(package, name):
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # the next access finds it without this function
        return value

    def __dir__() -> list[str]:
        names = vars(sys.modules[package])
        return sorted({*names.get("__all__", names), *(name for name in names if name.startswith("__"))})

    return __getattr__, __dir__


def _is_module(package: str, name: str) -> bool:
    return importlib.util.find_spec(f"{package}.{name}") is not None
