"""What a pickle says, read as data.

A pickle is a program for a stack machine, and the machine of Python may call anything. This one builds dictionaries, lists, tuples
and scalars, and keeps everything else as a note of what was named: a class or function is a `Named`, a call to it an `Inert`. Nothing
is imported and nothing is called, so nothing a file says can run. Only operations that `torch.save` writes are understood.
"""

import pickletools
from typing import Any, NamedTuple

from dictionary_learning.errors import CheckpointError

_MARK = object()
_MOST_OPERATIONS = 1_000_000
"""Operations of a pickle; those of a dictionary are a few hundred, of an optimizer's state a few thousand."""


class Named(NamedTuple):
    """A class or function by name."""

    module: str
    name: str


class Stored(NamedTuple):
    """What stands for an object kept elsewhere: a storage of a tensor."""

    reference: Any


class Inert:
    """A call that was not made.

    Args:
        function: what would have been called.
        arguments: what it would have been given.
    """

    def __init__(self, function: Any, arguments: tuple):
        self.function, self.arguments = function, arguments
        self.state: Any = None
        """What the object would have been filled with."""


def read_pickle(data: bytes) -> Any:
    """Returns what a pickle says.

    Raises:
        CheckpointError: it is damaged, or does what no checkpoint does.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for n, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if n > _MOST_OPERATIONS:
                raise CheckpointError("The pickle has more operations than any checkpoint.")
            if operation.name == "STOP":
                return stack.pop()
            _step(operation.name, argument, stack, memo)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
        raise CheckpointError(f"The pickle is damaged ({error}).") from error
    raise CheckpointError("The pickle has no end.")


_PUSHED = frozenset(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MADE = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name in _PUSHED:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _MADE:
        stack.append(_MADE[name]())
    elif name in _SIZES:
        items = tuple(_pop(stack) for _ in range(_SIZES[name]))
        stack.append(items[::-1])
    elif name in ("PROTO", "FRAME"):
        pass
    elif name == "MARK":
        stack.append(_MARK)
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "GLOBAL":
        module, _, attribute = argument.partition(" ")
        stack.append(Named(module, attribute))
    elif name == "STACK_GLOBAL":
        attribute, module = _pop(stack), _pop(stack)
        stack.append(Named(str(module), str(attribute)))
    elif name == "BINPERSID":
        stack.append(Stored(_pop(stack)))
    else:
        _combine(name, stack)


def _combine(name: str, stack: list[Any]) -> None:
    """Takes the operations that put parts together."""
    if name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in ("APPEND", "APPENDS", "ADDITEMS"):
        items = [_pop(stack)] if name == "APPEND" else _since_mark(stack)
        if isinstance(stack[-1], list):
            stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = [_pop(stack), _pop(stack)][::-1] if name == "SETITEM" else _since_mark(stack)
        if isinstance(stack[-1], dict):
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments, function = _pop(stack), _pop(stack)
        is_dict = isinstance(function, Named) and function.name == "OrderedDict"
        stack.append({} if is_dict else Inert(function, arguments if isinstance(arguments, tuple) else ()))
    elif name == "BUILD":
        state = _pop(stack)
        if isinstance(stack[-1], Inert):
            stack[-1].state = state
    else:
        raise CheckpointError(f"The pickle has the operation {name}, which no checkpoint needs.")


def _pop(stack: list[Any]) -> Any:
    item = stack.pop()
    if item is _MARK:
        raise ValueError("a mark where a value should be")
    return item


def _since_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]
