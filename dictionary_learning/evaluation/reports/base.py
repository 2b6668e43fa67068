"""What a renderer is."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from dictionary_learning.config import Registry

Renderer: TypeAlias = Callable[[Mapping[str, Any]], str]
"""Turns a report into the text of a file. The same report gives the same text."""

RENDERERS: Registry[Renderer] = Registry("report format")
