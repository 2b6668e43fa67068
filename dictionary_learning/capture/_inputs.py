"""The arguments that a model is called with: token ids and a mask, or whatever else it takes.

Most models take token ids. The mask tells padding, on either side: a model with numbered positions
then gets the number of each token, since it would count from the first column.
"""

import functools
import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from dictionary_learning._module_io import Channels, device_of, hidden_or_none
from dictionary_learning.capture._model_inputs import ModelInputs, is_ids
from dictionary_learning.errors import ModelError

logger = logging.getLogger(__name__)

InputsLike: TypeAlias = Tensor | Mapping[str, Any] | tuple[Any, ...]
"""Token ids (batch, ctx), or a model's keyword arguments, its positional ones, or the only one."""
MaskLike: TypeAlias = Shaped[Tensor, "batch ctx"]
"""True or 1 for tokens, False or 0 for padding."""
PROBE_TOKENS = 2
"""Tokens in the text that a model is probed with."""
_MAX_OFFSET = 8
"""Rows that a table of positions may have beside one for each position: OPT has 2."""
_TEXT_KEYS = {"input_ids", "attention_mask", "token_type_ids", "position_ids", "use_cache"}
"""Keyword arguments of a call on text alone."""


def input_embedding(module: nn.Module) -> nn.Module | None:
    """Returns the module that a model names as the one that embeds its input."""
    try:
        return module.get_input_embeddings()  # type: ignore[operator]  (transformers' models have it)
    except (AttributeError, NotImplementedError):
        return None


class InputBuilder:
    """Builds a model's arguments from token ids, or from whatever else it takes.

    Args:
        module: the model.
        name: the model's name in errors.
        example: inputs of a model that takes no token ids.
        reads_text: whether it takes token ids under another name than `input_ids`.
        channels: where its maps have their channels.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        example: InputsLike | None = None,
        *,
        reads_text: bool = False,
        channels: Channels | None = None,
    ):
        self.module, self.name = module, name
        self.channels: Channels | None = channels
        self._config: Any = getattr(module, "config", None)
        self._pad_token: int | None = getattr(self._config, "pad_token_id", None)
        self.device = torch.device("cpu") if self.is_elsewhere else device_of(module)
        parameters = inspect.signature(type(module).forward).parameters
        self._names = set(parameters)
        open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        self._takes_ids = "input_ids" in self._names or (open_ended and "args" in self._names)
        self._reads_text = self._takes_ids or reads_text
        self.example: InputsLike | None = example
        self._padded: set[str] = set()  # sides on which padding was tried
        self._warned_of_length = False

    @functools.cached_property
    def longest_context(self) -> int | None:
        """The most tokens in a context, if the model's config tells."""
        longest = getattr(self._config, "max_position_embeddings", None)
        if not isinstance(longest, int) or longest < 1:
            return None
        return min([longest, *self._position_tables(longest)])

    @functools.cached_property
    def vocabulary_size(self) -> int | None:
        """The number of token ids with a vector in the model's input embedding, if it names one."""
        embedding = input_embedding(self.module)
        return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None

    def build(self, inputs: InputsLike, attention_mask: MaskLike | None = None) -> ModelInputs:
        """Returns the arguments for a batch.

        Args:
            inputs: token ids (batch, ctx), or keyword arguments, positional ones, or the only one.
            attention_mask: True for tokens, False for padding, or 1 and 0; None if nothing is
                padding.

        Raises:
            ModelError: the inputs or the mask do not fit the model.
        """
        inputs = _with_wide_ids(inputs)
        if isinstance(inputs, Tensor) and (self._reads_text or is_ids(inputs)):
            mask = self._checked_mask(attention_mask, self._checked_ids(inputs))
            made = self._text({"input_ids": inputs}, mask) if self._takes_ids else self._arguments((inputs,), {})
            return made._replace(ctx_len=inputs.shape[1])
        if isinstance(inputs, Mapping):
            kwargs = dict(inputs)
            ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask", attention_mask)
            if isinstance(ids, Tensor) and is_ids(ids) and (mask is None or mask.shape == ids.shape):
                kwargs.pop("attention_mask", None)
                made = self._text(kwargs, self._checked_mask(mask, self._checked_ids(ids)))
                return made._replace(ctx_len=ids.shape[1]) if _TEXT_KEYS.issuperset(inputs) else made
            return self._arguments((), kwargs)
        return self._arguments(inputs if isinstance(inputs, tuple) else (inputs,), {})

    def remember(self, inputs: InputsLike) -> None:
        """Uses a batch as the example, if there is none and token ids cannot probe the model."""
        only_text = isinstance(inputs, Tensor) or (isinstance(inputs, Mapping) and _TEXT_KEYS.issuperset(inputs))
        if self.example is None and not (self._reads_text and only_text):
            self.example = inputs

    def probe(self, n_tokens: int = PROBE_TOKENS, n_texts: int = 1) -> ModelInputs:
        """Returns arguments to probe the model with: one example, or texts of a few tokens.

        Raises:
            ModelError: the model takes no token ids, and there is no example.
        """
        if self.example is not None:
            made = self.build(self.example)
            n = made.n_examples
            made = made.map(lambda x: x[:1] if x.ndim and x.shape[0] == n else x)._replace(n_examples=1)
        elif self._reads_text:
            made = self.build(self._ids(n_tokens, n_texts))
            if self.is_elsewhere:  # without values, a model cannot look for padding itself
                made.kwargs.setdefault("attention_mask", torch.ones(n_texts, n_tokens, dtype=torch.long))
        else:
            raise ModelError(
                f"{self.name} takes no input_ids, so it cannot be probed with tokens. Give one of its inputs, as "
                "load_model(model, example=images[:1])."
            )
        return made.map(lambda x: x.to("meta")) if self.is_elsewhere else made

    @property
    def is_elsewhere(self) -> bool:
        """Whether the model runs on a server, so that its weights are not here."""
        return device_of(self.module).type == "meta"

    def _ids(self, n_tokens: int, n_texts: int = 1) -> Tensor:
        """Returns texts (n_texts, n_tokens) without padding; several have different tokens."""
        token = 1 if self._pad_token == 0 else 0  # every vocabulary has these two
        if n_texts == 1:
            return torch.full((1, n_tokens), token)
        ids = torch.arange(1, 1 + n_texts * n_tokens) % (self.vocabulary_size or 2)
        ids[ids == self._pad_token] = token
        return ids.view(n_texts, n_tokens)

    def _checked_ids(self, ids: Tensor) -> Tensor:
        """Returns token ids, if the model has embeddings of them and of their positions."""
        if not is_ids(ids) or not ids.numel():
            raise ModelError(
                f"Got token ids of shape {tuple(ids.shape)} and {ids.dtype} for {self.name}; it needs integers of "
                "shape (batch, ctx), at least one. For one text, give ids[None]."
            )
        size = self.vocabulary_size
        if size is not None and not ids.is_meta:
            low, high = torch.stack(torch.aminmax(ids)).tolist()  # one transfer, if they are on a GPU
            if low < 0 or high >= size:
                raise ModelError(
                    f"Got token ids from {low} to {high}, and the input embedding of {self.name} has {size} rows, for "
                    f"ids 0 to {size - 1}. Use the model's own tokenizer. If a token was added, as for padding, call "
                    "resize_token_embeddings on the model, or pad with a token that it has."
                )
        longest, ctx_len = self.longest_context, ids.shape[1]
        if longest and ctx_len > longest:
            if any(self._position_tables(self._config.max_position_embeddings)):
                raise ModelError(
                    f"{self.name} knows {longest} positions, and a context has {ctx_len} tokens. Set ctx_len to "
                    f"{longest} or less."
                )
            if not self._warned_of_length:
                logger.warning(
                    "%s was made for contexts of at most %s tokens; these have %d.", self.name, longest, ctx_len
                )
            self._warned_of_length = True
        return ids

    def _checked_mask(self, mask: Tensor | None, ids: Tensor) -> Bool[Tensor, "batch ctx"] | None:
        """Returns the mask as booleans, if it fits these ids; None if it leaves nothing out."""
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.shape != ids.shape:
            got = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
            raise ModelError(
                f"Got an attention mask of {got} for token ids of shape {tuple(ids.shape)}; give a tensor of the same "
                "shape, True or 1 for tokens, or None. Sites and edits go by name: sites=[...], edits={...}."
            )
        # a mask that is added to attention scores has 0 for tokens
        if mask.is_floating_point() and not bool((((mask == 0) | (mask == 1)).all(-1) & mask.any(-1)).all()):
            raise ModelError(
                f"Got an attention mask of {mask.dtype} with values other than 0 and 1, or with no token in a row; 1 "
                "for tokens and 0 for padding is needed. Of a mask that is added to attention scores, give mask == 0."
            )
        mask = mask.bool()  # tokenizers return integers, of which ~ is no negation
        if bool(mask.all()):
            return None
        self._check_padding(mask)
        return mask

    def _position_tables(self, longest: int) -> Iterator[int]:
        """Yields the number of positions in each table of them, learned or fixed as in GPT-J."""
        vocabulary = getattr(self._config, "vocab_size", None)
        for part in self.module.modules():
            if hasattr(part, "make_weights"):
                continue  # XGLM's and M2M-100's tables grow
            fixed = [value for value in (*part._buffers.values(), *vars(part).values()) if isinstance(value, Tensor)]
            for table in [part.weight] if isinstance(part, nn.Embedding) else fixed:
                n_rows = len(table) if table.ndim == 2 else 0
                if n_rows != vocabulary and longest <= n_rows <= longest + _MAX_OFFSET:
                    # RoBERTa's kind numbers its positions from behind the id of padding on
                    padding = part.padding_idx if isinstance(part, nn.Embedding) else None
                    yield n_rows if padding is None else n_rows - padding - 1

    def _text(self, kwargs: dict[str, Any], mask: Tensor | None) -> ModelInputs:
        ids = kwargs["input_ids"]
        if mask is not None:
            kwargs["attention_mask"] = mask.to(torch.long)
            # learnt positions are counted from the first column, where padding may be
            if "position_ids" in self._names and self._counts_from_zero:
                kwargs.setdefault("position_ids", (kwargs["attention_mask"].cumsum(-1) - 1).clamp_min(0))
        if "decoder_input_ids" in self._names and "decoder_input_ids" not in kwargs:
            kwargs = {**self._shifted(ids, mask), **kwargs}
        return self._arguments((), kwargs)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ModelInputs:
        first = next(_tensors((*args, *kwargs.values())), None)  # (batch, ...)
        if first is None or not first.ndim:
            raise ModelError(
                f"{self.name} got no tensor with a batch of examples. Give token ids, a tensor, a tuple of positional "
                "inputs, or a mapping of keyword inputs."
            )
        if "use_cache" in self._names:
            kwargs.setdefault("use_cache", False)
        return ModelInputs(args, kwargs, first.shape[0], channels=self.channels).map(lambda x: x.to(self.device))

    def _shifted(self, ids: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Returns a decoder's inputs for its encoder's text: the same text, one token later."""
        start = getattr(self._config, "decoder_start_token_id", None)
        shifted = torch.roll(ids, 1, dims=1)
        mask = torch.ones_like(ids) if mask is None else mask.to(torch.long)
        is_start = mask.cumsum(-1) <= 1  # the first token, and padding before it
        starts = torch.full_like(ids, 0 if start is None else start)
        return {"decoder_input_ids": torch.where(is_start, starts, shifted), "decoder_attention_mask": mask}

    @functools.cached_property
    def _counts_from_zero(self) -> bool:
        """Whether the model's `position_ids` start from 0; RoBERTa's start after the padding id."""
        if self.is_elsewhere:
            return True  # there are no weights to ask
        alone = self.build(self._ids(PROBE_TOKENS))
        numbers = torch.arange(PROBE_TOKENS, device=self.device)[None]  # (1, ctx)
        told = alone._replace(kwargs={**alone.kwargs, "position_ids": numbers})
        x, y = self._prediction(alone), self._prediction(told)
        return x is None or y is None or _is_close(x, y)

    @torch.no_grad()
    def _prediction(self, inputs: ModelInputs) -> Tensor | None:
        return hidden_or_none(self.module(*inputs.args, **inputs.kwargs))

    def _check_padding(self, mask: Bool[Tensor, "batch ctx"]) -> None:
        """Checks, once for each side, that padding there changes nothing for the tokens beside it.

        On the left it does where learnt positions are counted from the first column.
        """
        side = "left" if bool((~mask[:, 0]).any()) else "right"
        if side in self._padded or self.is_elsewhere:
            return
        self._padded.add(side)
        text, pad = self._ids(3), self._pad_token
        if pad is None or not 0 <= pad < (self.vocabulary_size or pad + 1):
            pad = 1 - int(text[0, 0])
        ids, keep = torch.full((1, 5), pad), torch.zeros(1, 5, dtype=torch.bool)
        span = slice(2, 5) if side == "left" else slice(0, 3)
        ids[:, span], keep[:, span] = text, True
        alone, padded = self._prediction(self.build(text)), self._prediction(self.build(ids, keep))
        if alone is None or padded is None or alone.ndim != 3 or padded.shape[1] != 5:
            return  # the prediction is not of each token
        if _is_close(alone, padded[:, span]):
            return
        if side == "right":
            logger.warning(
                "%s computes other activations for a text that is padded on the right than for the text alone. Pack "
                "the text.",
                self.name,
            )
            return
        self._padded.discard(side)
        raise ModelError(
            f"{self.name} computes other activations for a text that is padded on the left than for the text alone: it "
            "counts positions from the padding on. Pad on the right, as with padding_side='right', or pack the text."
        )


def _is_close(x: Tensor, y: Tensor) -> bool:
    """Returns whether two outputs differ by rounding alone."""
    tolerance = 1e-3 if x.dtype in (torch.float32, torch.float64) else 3e-2
    x, y = x.float(), y.float()
    # a masked vocabulary has logits of -inf, whose difference is not a number
    difference = (x - y).masked_fill(x == y, 0)
    return bool(difference.abs().mean() <= tolerance * x.where(x.isfinite(), 0).abs().mean())


def _with_wide_ids(inputs: InputsLike) -> InputsLike:
    """Returns inputs with token ids of a type that embeddings take, which files may not have."""
    if isinstance(inputs, Tensor):
        return inputs.long() if is_ids(inputs) and inputs.dtype not in (torch.int32, torch.int64) else inputs
    if isinstance(inputs, Mapping) and isinstance(inputs.get("input_ids"), Tensor):
        return {**inputs, "input_ids": _with_wide_ids(inputs["input_ids"])}
    return inputs


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
