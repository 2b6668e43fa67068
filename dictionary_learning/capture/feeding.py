"""What a model is called with: token ids and mask, a mapping of keyword arguments, a tuple of positional ones, or a tensor.

Token ids are what most models take. Their mask says which tokens are padding, which may stand on either side: then a model
that numbers positions is told the number of each, since it would count from the first column.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dictionary_learning.errors import ModelError
from dictionary_learning.module_io import device_of, hidden_or_none

logger = logging.getLogger(__name__)

PROBE_TOKENS = 2
"""In the text that a model is probed with."""
_MOST_OFFSET = 8
"""Rows that a table of positions may have beside those of its positions: OPT has 2."""


class Call(NamedTuple):
    """Arguments of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    n_examples: int
    """How many examples they hold."""
    ctx_len: int | None
    """Tokens in each, where they are of text."""

    def to(self, device: torch.device) -> "Call":
        """Returns the arguments with their tensors on a device."""
        args = tuple(_to(value, device) for value in self.args)
        return self._replace(args=args, kwargs={name: _to(value, device) for name, value in self.kwargs.items()})


class Feeder:
    """Makes a module's arguments of token ids, or of whatever else it takes.

    Args:
        module: the model.
        name: what to call it in an error.
        device: where its inputs are put.
        example: some of what it takes, where that is not token ids.
        reads_text: whether it takes token ids, though not by the name `input_ids`.
    """

    def __init__(
        self, module: nn.Module, name: str, device: torch.device, example: Any = None, *, reads_text: bool = False
    ):
        self.module, self.name, self.device = module, name, device
        parameters = inspect.signature(type(module).forward).parameters
        self._names = set(parameters)
        open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        self.takes_tokens = "input_ids" in self._names or (open_ended and "args" in self._names)
        self._reads_text = self.takes_tokens or reads_text
        self._example = None if example is None else getattr(example, "inputs", example)
        self._numbers_from_zero: bool | None = None
        self._padded: set[str] = set()  # sides on which padding was tried
        self._was_long = False

    @property
    def longest(self) -> int | None:
        """The most tokens in a context, where the model's config tells."""
        found = getattr(getattr(self.module, "config", None), "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    def call(self, inputs: Any, attention_mask: Tensor | None = None) -> Call:
        """Returns the arguments for a batch.

        Args:
            inputs: token ids (batch, ctx), or keyword arguments, positional ones, or the only one.
            attention_mask: which tokens are no padding; None where all are.

        Raises:
            ModelError: there is nothing to call the model with.
        """
        if isinstance(inputs, Tensor) and _is_ids(inputs):
            self._check_length(inputs.shape[1])
            call = (
                self._text({"input_ids": inputs}, attention_mask)
                if self.takes_tokens
                else self._only(inputs, attention_mask)
            )
            return call._replace(ctx_len=inputs.shape[1])
        if isinstance(inputs, Mapping):
            given = dict(inputs)
            ids, mask = given.get("input_ids"), given.get("attention_mask", attention_mask)
            if isinstance(ids, Tensor) and _is_ids(ids) and (mask is None or mask.shape == ids.shape):
                given.pop("attention_mask", None)
                return self._text(given, None if mask is None else mask.bool())
            return self._arguments((), given)
        return self._arguments(inputs if isinstance(inputs, tuple) else (inputs,), {})

    def remember(self, inputs: Any) -> None:
        """Takes the first example of a batch as the one to probe with, where the model takes no token ids and none was given."""
        is_text = isinstance(inputs, Tensor) and _is_ids(inputs) and self._reads_text
        if self._example is None and not is_text:
            self._example = inputs

    def probe(self, n_tokens: int = PROBE_TOKENS) -> Call:
        """Returns the arguments to probe the model with: one example, or one text of a few tokens.

        Raises:
            ModelError: the model takes no token ids, and no example is known.
        """
        if self._example is None:
            if not self._reads_text:
                raise ModelError(
                    f"{self.name} takes no input_ids, so it cannot be probed with tokens. Give one of its inputs, as "
                    "load_model(model, example=images[:1])."
                )
            call = self.call(self._ids(n_tokens))
            if device_of(self.module).type == "meta":  # without values, a model cannot look for padding itself
                call.kwargs.setdefault("attention_mask", torch.ones(1, n_tokens, dtype=torch.long))
            return call
        call = self.call(self._example)
        n = call.n_examples
        cut = {name: _first(value, n) for name, value in call.kwargs.items()}
        return Call(tuple(_first(value, n) for value in call.args), cut, 1, call.ctx_len)

    def _ids(self, n_tokens: int) -> Tensor:
        """Returns a text of one token that every vocabulary has, and that is no padding."""
        return torch.full((1, n_tokens), 1 if _pad_token(self.module) == 0 else 0)

    def _text(self, inputs: dict[str, Any], attention_mask: Tensor | None) -> Call:
        ids = inputs["input_ids"]
        if attention_mask is not None and not bool(attention_mask.all()):
            inputs["attention_mask"] = attention_mask.to(torch.long)
            self._check_padding(attention_mask)
            # a model with learnt positions counts from the first column unless it is told; padding may be on the left
            if "position_ids" in self._names and self._counts_from_zero():
                inputs.setdefault("position_ids", (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0))
        if "decoder_input_ids" in self._names and "decoder_input_ids" not in inputs:
            inputs = {**self._shifted(ids, attention_mask), **inputs}
        return self._arguments((), inputs)

    def _check_length(self, ctx_len: int) -> None:
        """Refuses contexts that a table of positions is too short for, and says so, once, of those that the model was not made for.

        Raises:
            ModelError: the model has a learnt vector for each position, and fewer of them.
        """
        longest = self.longest
        if longest is None or ctx_len <= longest or self._was_long:
            return
        vocabulary = getattr(getattr(self.module, "config", None), "vocab_size", None)
        tables = {m.num_embeddings for m in self.module.modules() if isinstance(m, nn.Embedding)} - {vocabulary}
        if any(longest <= size <= longest + _MOST_OFFSET for size in tables):
            raise ModelError(
                f"{self.name} knows {longest} positions, and a context has {ctx_len} tokens. Set ctx_len to {longest} or less."
            )
        self._was_long = True
        logger.warning("%s was made for contexts of at most %d tokens; these have %d.", self.name, longest, ctx_len)

    def _only(self, ids: Tensor, attention_mask: Tensor | None) -> Call:
        """Returns the arguments of a module that is called with token ids and takes no mask."""
        if attention_mask is not None and not bool(attention_mask.all()):
            self._check_padding(attention_mask)
        return self._arguments((ids,), {})

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        first = next(_tensors((*args, *kwargs.values())), None)
        if first is None or not first.ndim:
            raise ModelError(
                f"{self.name} was given no tensor with a batch of examples. Give token ids, a tensor, a tuple of positional inputs, "
                "or a mapping of keyword inputs."
            )
        if "use_cache" in self._names:
            kwargs.setdefault("use_cache", False)
        return Call(args, kwargs, first.shape[0], None).to(self.device)

    def _shifted(self, ids: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
        """Returns what a decoder reads beside its encoder: the same text, one token later."""
        config: Any = getattr(self.module, "config", None)
        start = getattr(config, "decoder_start_token_id", None)
        shifted = torch.roll(ids, 1, dims=1)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(torch.long)
        begins = mask.cumsum(-1) <= 1  # the first token, and padding before it
        start = torch.full_like(ids, 0 if start is None else start)
        return {"decoder_input_ids": torch.where(begins, start, shifted), "decoder_attention_mask": mask}

    @torch.no_grad()
    def _counts_from_zero(self) -> bool:
        """Tells whether positions that are given are numbered from 0; RoBERTa's kind counts on from the padding's id."""
        if self._numbers_from_zero is None:
            if device_of(self.module).type == "meta":
                return True  # no weights here to ask
            call = self.call(self._ids(PROBE_TOKENS))
            given = {**call.kwargs, "position_ids": torch.arange(PROBE_TOKENS, device=self.device)[None]}
            left, told = (hidden_or_none(self.module(**kwargs)) for kwargs in (call.kwargs, given))
            self._numbers_from_zero = left is None or told is None or _close(left, told)
        return self._numbers_from_zero

    @torch.no_grad()
    def _check_padding(self, attention_mask: Tensor) -> None:
        """Sees, once for each side, that padding there changes nothing for the tokens beside it.

        Raises:
            ModelError: padding on the left does, as where positions are learnt and cannot be told.
        """
        side = "left" if bool((~attention_mask[:, 0]).any()) else "right"
        if side in self._padded or device_of(self.module).type == "meta":
            return
        self._padded.add(side)
        text = self._ids(3)
        pad = _pad_token(self.module)
        ids, keep = torch.full((1, 5), 1 - int(text[0, 0]) if pad is None else pad), torch.zeros(1, 5, dtype=torch.bool)
        span = slice(2, 5) if side == "left" else slice(0, 3)
        ids[:, span], keep[:, span] = text, True
        calls = [self.call(text), self.call(ids, keep)]
        alone, padded = (hidden_or_none(self.module(*call.args, **call.kwargs)) for call in calls)
        if alone is None or padded is None or alone.ndim != 3 or padded.shape[1] != 5 or _close(alone, padded[:, span]):
            return
        if side == "right":
            logger.warning(
                "%s gives other activations for a text that is padded on the right than for the text alone. Pack the text.",
                self.name,
            )
            return
        self._padded.discard(side)
        raise ModelError(
            f"{self.name} gives other activations for a text that is padded on the left than for the text alone: it counts positions "
            "from the padding on. Pad on the right, as with padding_side='right', or pack the text."
        )


def _pad_token(module: nn.Module) -> int | None:
    return getattr(getattr(module, "config", None), "pad_token_id", None)


def _close(x: Tensor, y: Tensor) -> bool:
    """Tells whether two outputs differ by rounding alone."""
    tolerance = 1e-3 if x.dtype in (torch.float32, torch.float64) else 3e-2
    return bool((x.float() - y.float()).abs().mean() <= tolerance * x.float().abs().mean())


def _is_ids(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and not tensor.is_floating_point()


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _first(value: Any, n_examples: int) -> Any:
    """Returns the first example of what may be a batch."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == n_examples:
        return value[:1]
    return value
