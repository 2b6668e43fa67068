"""Activations of whole contexts, with what the model loses when they are replaced: for training end to end, and of what reads contexts.

A `ContextStream` takes the place of an `ActivationBuffer`: its batches are the activations of some contexts, in order and
not shuffled, and remember the contexts. A trainer whose loss is that of the model asks the batch for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.activations.filters import TokenFilter
from dictionary_learning.data import TokenBatch, as_token_stream
from dictionary_learning.errors import ConfigError, DataError, DataExhaustedError
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.predictions import Predictions
from dictionary_learning.sites import Sides, Site


class ContextBatch(dict[Site, Tensor]):
    """Activations by site of the tokens that count, and the contexts that they are of.

    Args:
        model: the language model.
        tokens: the contexts.
        keep: which of their tokens count.
        sites: where activations are taken.
        predict: whether the model also predicts, so that `downstream` can tell what it loses; else it stops after the last site.
    """

    def __init__(
        self, model: TracedModel, tokens: TokenBatch, keep: Tensor, sites: Sequence[Site], *, predict: bool = True
    ):
        super().__init__()
        self.model, self.tokens, self.keep = model, tokens, keep
        self.lengths: Int[Tensor, "contexts"] = keep.sum(-1)
        """How many rows each context has; the rows are those of one context after another."""
        self._untouched: Predictions | None = None
        seen: dict[Site, Tensor] = {}

        def remember(site: Site) -> Edit:
            return lambda x: seen.update({site: x.detach().clone()})

        with torch.no_grad():
            if predict:
                logits = model.run(*tokens, {site: remember(site) for site in sites})
                self._untouched = Predictions(logits, tokens, keep)
            else:
                seen.update(model.capture(*tokens, sites))
        self.update({site: seen[site][keep.to(seen[site].device)] for site in sites})

    def model_loss_fn(self, replaced: Mapping[Site, Float[Tensor, "n dim"]]) -> dict[str, Float[Tensor, ""]]:
        """Returns what the model loses with other activations; gradients reach those, and nothing else.

        Args:
            replaced: for each site, what takes the activations' place, in the order of its rows here.

        Returns:
            `ce`, the mean of -log q(next token), and `kl`, the mean of sum p (log p - log q), in nats; p is the untouched model's
            prediction, and means are over tokens that count and whose next token does.

        Raises:
            ConfigError: the model did not predict.
        """
        if self._untouched is None:
            raise ConfigError(
                "What the model loses is not known: it did not predict. Build the ContextStream with predict=True."
            )

        def put(rows: Tensor) -> Edit:
            def edit(x: Tensor) -> Tensor:
                return x.masked_scatter(self.keep.to(x.device).unsqueeze(-1), rows.to(x.device, x.dtype))

            return edit

        logits = self.model.run(*self.tokens, {site: put(rows) for site, rows in replaced.items()})
        lost = self._untouched.lost(logits)
        return {"ce": lost.ce.mean(), "kl": lost.kl.mean()}


class ContextStream:
    """Serves `ContextBatch`es of a model at one or several sites, until the text ends.

    Args:
        data: the text (see `as_text_source`).
        model: the language model, or its name (see `load_model`).
        submodule: a submodule, a site, a pattern, or a list (see `ActivationBuffer`).
        io: the side of submodules that name none; `in_and_out` for both.
        ctx_len: tokens in a context.
        batch_size: contexts in a batch.
        remove_bos: leaves out BOS, the separators of documents and the first token of each context.
        pack: full contexts of joined documents; else each document is one context, cut and padded.
        predict: whether the model predicts, for training end to end; without, it stops after the last site.
        end_of_data: `stop` ends the iteration after the last context, `repeat` begins the text again, `error` raises.

    Raises:
        SiteError: a submodule is not in the model.
        ConfigError: end_of_data is none of these.
        DataExhaustedError: the data ended, under `end_of_data="error"`.
    """

    def __init__(
        self,
        data: Any,
        model: Any,
        submodule: Any,
        *,
        io: Sides = "out",
        ctx_len: int = 128,
        batch_size: int = 8,
        remove_bos: bool = True,
        pack: bool = True,
        predict: bool = True,
        end_of_data: Literal["stop", "repeat", "error"] = "stop",
    ):
        self.model, self.end_of_data = load_model(model), end_of_data
        self.sites = self.model.sites(submodule, io)
        self.widths = self.model.widths(self.sites)
        self.batch_size, self.predict = batch_size, predict
        self.tokens = as_token_stream(
            data, self.model.tokenizer, ctx_len=ctx_len, model=self.model, end_of_data=end_of_data, pack=pack
        )
        self.filter = TokenFilter(exclude_ids=self.tokens.special_ids if remove_bos else (), exclude_first=remove_bos)
        self._ahead: list[TokenBatch] = []  # read for a sample, and still to be served

    def __iter__(self) -> Iterator[ContextBatch]:
        return self

    def __next__(self) -> ContextBatch:
        tokens = self._ahead.pop(0) if self._ahead else self._take()
        if tokens is None:
            raise StopIteration
        return ContextBatch(self.model, tokens, self.filter.token_mask(tokens), self.sites, predict=self.predict)

    def sample(self, n: int) -> dict[Site, Float[Tensor, "n dim"]]:
        """Returns up to n rows that will be served later, without taking them.

        Raises:
            DataError: the text holds no token that counts.
        """
        parts: list[dict[Site, Tensor]] = []
        n_rows, ahead = 0, iter(list(self._ahead))
        while n_rows < n:
            tokens = next(ahead, None)
            if tokens is None:
                tokens = self._take()
                if tokens is None:
                    break
                self._ahead.append(tokens)
            keep = self.filter.token_mask(tokens)
            parts.append({site: x[keep.to(x.device)] for site, x in self.model.capture(*tokens, self.sites).items()})
            n_rows += int(keep.sum())
        if not parts:
            raise DataError(f"{self.tokens.source.name} holds no token that counts. Give more text.")
        return {site: torch.cat([part[site] for part in parts])[:n] for site in self.sites}

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next batches depend on: the position in the text, and contexts that were only looked at."""
        return {"tokens": self.tokens.state_dict(), "ahead": [tuple(tokens) for tokens in self._ahead]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state of a stream built alike."""
        self.tokens.load_state_dict(state["tokens"])
        self._ahead = [TokenBatch(*tokens) for tokens in state["ahead"]]

    @property
    def config(self) -> dict[str, Any]:
        """All that decides which rows are served; kept with every dictionary trained on them."""
        return {
            "source": self.tokens.source.name,
            "model": self.model.describe(),
            "sites": [str(site) for site in self.sites],
            "ctx_len": self.tokens.ctx_len,
            "batch_size": self.batch_size,
            "pack": self.tokens.pack,
            "end_of_data": self.end_of_data,
            "filter": self.filter.to_dict(),
        }

    @property
    def norm_limits(self) -> dict[Site, float]:
        """The largest norms that count: none, since tokens of a context stay together."""
        return {}

    def close(self) -> None:
        """Does nothing; buffers, whose place this takes, have threads to stop."""

    def _take(self) -> TokenBatch | None:
        """Returns the next contexts that have a token to be scored."""
        n_ends = 0
        while n_ends < 2:  # a pass from end to end without one is enough
            while (tokens := self.tokens.take(self.batch_size)) is not None:
                keep = self.filter.token_mask(tokens)
                if (keep[:, :-1] & keep[:, 1:]).any():
                    return tokens
            if self.end_of_data == "error":
                raise DataExhaustedError(
                    f"{self.tokens.source.name} has ended. Give more text, or set end_of_data to 'stop' or 'repeat'."
                )
            if self.end_of_data == "stop":
                return None
            self.tokens.restart()
            n_ends += 1
        raise DataError(f"{self.tokens.source.name} holds no token that counts. Give more text.")
