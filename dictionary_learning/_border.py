"""The border: what public functions accept, by the annotations and names of their parameters.

A parameter means the same wherever it stands, so its range stands here once, for Python and for the
command line. What a function of its own resolves (models, data, sites) is checked there. Nothing
heavy is imported here, so that the command line answers at once.
"""

import errno
import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from dictionary_learning._coercion import check_range, coerce, meant
from dictionary_learning.errors import ConfigError, DictionaryLearningError, UnknownNameError

P = ParamSpec("P")
R = TypeVar("R")

_COUNTS = (
    "patience evaluate_every n_tokens n_eval_tokens n_ctxs ctx_len max_len batch_size out_batch_size "
    "n refresh_batch_size shard_size window steps log_steps checkpoint_steps backup_steps "
    "keep_checkpoints layer_stride max_examples shuffle_buffer row_len epochs activation_dim dict_size k "
    "target_l0 candidates n_latents d_submodule vocab_size n_embeddings n_top n_quantiles per_quantile "
    "checkpoint_every n_contexts n_inputs max_length max_new_tokens n_steps n_nodes n_logits max_latents "
    "site_dims output_dims"
)
_FROM_ZERO = "save_steps n_batches n_fidelity_tokens n_resamples layer hook_layer prefetch index call n_quiet"
BOUNDS: Mapping[str, Mapping[str, float]] = {
    **{name: {"at_least": 1} for name in _COUNTS.split()},
    **{name: {"at_least": 0} for name in _FROM_ZERO.split()},
    **{name: {"at_least": -(2**63), "at_most": 2**63 - 1} for name in ("seed", "shuffle_seed")},
    **{name: {"above": 0} for name in ("max_activation_norm_multiple", "max_norm_multiple", "memory_gb")},
    **{name: {"at_least": 0, "at_most": 1} for name in ("logit_share", "node_threshold", "edge_threshold")},
    "separator_id": {"at_least": 0, "at_most": 2**31 - 1},
    "held_out_every": {"at_least": 2},
    "expansion": {"at_least": 1},
}
"""The range of a number, by the name of the parameter."""
_LOCAL = ("save_dir", "folder", "destination")
"""Parameters that name a folder to write, which is no address."""
_REMEDIES = {
    "ModelError": "Check the name, the files and the options.",
    "CheckpointError": "Check the path, the files and whether they may be read and written.",
    "ConfigError": "Check the arguments, and whether files may be written.",
    "DataError": "Check the data, and whether files are whole and may be read and written.",
}
_FULL = "Free some of the disk, and repeat the call."
TEMPLATED = "model.tokenizer.apply_chat_template(messages, add_generation_prompt=True"
"""What makes a prompt of chat messages, but for the end of the call."""
_DENSE = "torch.strided"
_LONGEST, _LONGEST_SENTENCE = 80, 300
"""Characters of a value in an error, and of what another package says."""


def checked(
    *, wraps: type[DictionaryLearningError] | None = None, is_module: bool = False, autocast: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator: wrong arguments of a public function are a ConfigError, at once.

    Arguments are coerced without loss, as the fields of a config are. The function runs in the
    usual state of PyTorch, whatever its caller's is.

    Args:
        wraps: An error of ours that takes the place of all others which the function raises; it
            repeats the request. None lets others through.
        is_module: Whether it is a method of a module, which follows the defaults of PyTorch as
            other modules do.
        autocast: Whether it follows the caller's autocast, as a part of training steps.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = _bind(function, args, kwargs)
            try:
                if is_module or "torch" not in sys.modules:
                    return function(*bound.args, **bound.kwargs)
                from dictionary_learning._usual_state import usual_state

                with usual_state(autocast=autocast):
                    return function(*bound.args, **bound.kwargs)
            except Exception as error:
                if wraps is None or not is_foreign(error):
                    raise
                raise wraps(f"{_request(function, bound)} failed: {said(error)} {_remedy(wraps, error)}") from error

        return call

    return decorate


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator: a function knows older names of its keywords, given as older=new."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given: dict[str, Any] = dict(kwargs)
            for older in names.keys() & given.keys():
                if names[older] in given:
                    raise ConfigError(
                        f"Got {older} and {names[older]}, which are one argument of {function.__name__}. Give "
                        f"{names[older]}."
                    )
                given[names[older]] = given.pop(older)
            return function(*args, **given)  # pyright: ignore[reportCallIssue]

        return call

    return decorate


def check(name: str, value: Any, hint: Any, where: str = "") -> Any:
    """Returns an argument in its annotated type.

    Raises:
        ConfigError: It has another type, or is out of the range that its name has.
    """
    try:
        found: Any = coerce(meant(value), hint)
        for part in found if isinstance(found, (list, tuple)) else (found,):
            check_range(part, BOUNDS.get(name, {}))
        if _is_path(hint):
            _check_path(found)
        check_local(name, found)
        if str(getattr(found, "layout", _DENSE)) != _DENSE:
            raise ValueError("a dense tensor: call its to_dense()")
        if "dtype" in name and not getattr(found, "is_floating_point", True) and str(found) != "torch.int8":
            raise ValueError("a floating-point type, such as torch.float32")
    except (TypeError, ValueError) as error:
        is_chat = str in (hint, *typing.get_args(hint)) and are_messages(value)
        how = f" Give {TEMPLATED}, tokenize=False)." if is_chat else ""
        got = f"Got {name}={short(value)}{where and f' in {where}'}"
        raise ConfigError(f"{got}; it must be {error}.{how}") from None
    if name == "device" and found is not None:
        from dictionary_learning._hardware import as_device  # imports torch

        as_device(value)
    return found


def check_local(name: str, value: Any) -> None:
    """Refuses an address where a folder of this machine is written.

    Raises:
        ConfigError: It is an address.
    """
    if name in _LOCAL and "://" in str(value):
        raise ConfigError(f"Got {name}={short(value)}; give a folder of this machine, and copy it afterwards.")


def as_tokenizer(given: Any) -> Any:
    """Returns a tokenizer, of a processor the one that it holds, or None.

    Raises:
        ConfigError: It is neither.
    """
    found = getattr(given, "tokenizer", given)
    if found is not None and not hasattr(found, "bos_token_id"):
        raise ConfigError(f"Got tokenizer={short(given)}; give one of transformers, or a processor that holds one.")
    return found


def are_messages(given: Any) -> bool:
    """Returns whether something is a chat message, or messages, or lists of them."""
    while isinstance(given, (list, tuple)) and given:
        given = given[0]
    return isinstance(given, Mapping) and "role" in given


def is_foreign(error: BaseException) -> bool:
    """Returns whether an error is none of ours, and none that callers react to."""
    passed = (DictionaryLearningError, StopIteration)
    return not isinstance(error, passed) and type(error).__name__ != "OutOfMemoryError"


def said(error: BaseException) -> str:
    """Returns what an exception says, as one sentence, with the kind of those of other packages."""
    kind = "" if isinstance(error, DictionaryLearningError) else f"{type(error).__name__}: "
    text = f"{kind}{error}".strip().splitlines()[0].rstrip(": ")
    text = text if len(text) <= _LONGEST_SENTENCE else f"{text[: _LONGEST_SENTENCE - 1]}…"
    return text if text.endswith((".", "!", "?")) else text + "."


def short(value: Any) -> str:
    """Returns a value as an error shows it: in one line, and not at length."""
    if type(value).__module__ in ("torch", "pandas", "numpy") and hasattr(value, "shape"):
        return f"a {type(value).__name__} of shape {list(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no integers of thousands of digits
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _bind(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
    signature, where = _signature(function), _name(function, args)
    parameters = signature.parameters
    own = [name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in kwargs:
            if name not in own:
                raise UnknownNameError(f"argument of {where}", name, [name for name in own if name != "self"])
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        takes = ", ".join(name for name in own if name != "self")
        raise ConfigError(f"{where} cannot be called like this: {error}. It takes: {takes}.") from None
    for name in own:
        if name in bound.arguments and parameters[name].annotation is not inspect.Parameter.empty:
            bound.arguments[name] = check(name, bound.arguments[name], parameters[name].annotation, where)
    return bound


def _is_path(hint: Any) -> bool:
    return any((typing.get_origin(option) or option) is os.PathLike for option in (hint, *typing.get_args(hint)))


def _check_path(path: Any) -> None:
    if path is not None and not str(path):
        raise ValueError("a path ('.' for the current folder)")
    if "\0" in str(path):
        raise ValueError("a path without the character NUL")


def _remedy(wraps: type[DictionaryLearningError], error: Exception) -> str:
    # of Python or of another language
    return _FULL if os.strerror(errno.ENOSPC) in str(error) else _REMEDIES[wraps.__name__]


def _request(function: Callable[..., Any], bound: inspect.BoundArguments) -> str:
    """Returns a call as it was written, without long values and those that are None."""
    given = {name: value for name, value in bound.arguments.items() if name not in ("self", "cls")}
    given |= given.pop("facts", {}) | given.pop("options", {})
    given = {name: value for name, value in given.items() if value is not None}
    simple = (str, os.PathLike, bool, int, float)
    shown = [f"{n}={short(v) if isinstance(v, simple) else f'a {type(v).__name__}'}" for n, v in given.items()]
    return f"{_name(function, bound.args)}({', '.join(shown)})"


def _name(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    return type(args[0]).__qualname__ if function.__name__ == "__init__" and args else function.__qualname__
