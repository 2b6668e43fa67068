"""Activations of whole contexts, and the model's loss when they are replaced.

A `ContextStream` replaces an `ActivationBuffer` for end-to-end training, and for dictionaries that
read contexts. Its batches hold contexts and their activations, in order. A trainer with an
end-to-end loss asks the batch for the model's loss.
"""

import copy
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._brief import brief
from dictionary_learning._in_turn import InTurn, in_turn
from dictionary_learning._types import ModelLike, SubmodulesLike, TextLike
from dictionary_learning._usual_state import usual_state
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.activations._reader import ids_to_exclude
from dictionary_learning.data import EndOfData, TokenBatch, as_source, as_token_stream
from dictionary_learning.errors import ConfigError, DataError, DataExhaustedError
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Sides, Site

_PART = {"cpu": 1 << 21, "cuda": 1 << 25}
"""Logits whose losses are computed at a time, by device: on a CPU they stay in its cache."""


class ContextBatch(dict[Site, Tensor]):
    """Activations by site of the tokens that count (`keep`), (n, dim) each, and their contexts.

    With `predict`, the model also predicts, which `model_loss_fn` needs; else it stops after the
    last site.
    """

    def __init__(
        self,
        model: TracedModel,
        tokens: TokenBatch,
        keep: Bool[Tensor, "contexts ctx"],
        sites: Sequence[Site],
        *,
        predict: bool = True,
    ):
        super().__init__()
        self.model, self.tokens, self.keep = model, tokens, keep
        self.lengths: Int[Tensor, "contexts"] = keep.sum(-1)
        """Number of rows of each context; rows of one context follow those of another."""
        self._untouched: Predictions | None = None
        values: dict[Site, Tensor] = {}

        def select(site: Site, x: Tensor) -> None:
            values[site] = x[keep.to(x.device)].detach()  # (n, dim)

        with torch.no_grad():
            if predict:
                logits = model.run(
                    *tokens, {site: functools.partial(select, site) for site in sites}, special_tokens=True
                )
                self._untouched = Predictions(logits, tokens, keep)
            else:
                for site, x in model.capture(*tokens, sites).items():
                    select(site, x)
        self.update({site: values[site] for site in sites})  # in their order, and not the model's

    def model_loss_fn(
        self, replaced: Mapping[Site, Float[Tensor, "n dim"]], *, activation_checkpointing: bool = False
    ) -> dict[str, Float[Tensor, ""]]:
        """Returns the model's loss with other activations; only these get gradients.

        Args:
            replaced: the replacement of each site's activations, in the order of its rows here.
            activation_checkpointing: whether the model's layers run again for gradients, instead of
                keeping their activations (see `TracedModel.run`).

        Returns:
            `ce`, the mean of -log q(next token), and `kl`, the mean of sum p (log p - log q), in
            nats, where p is the untouched model. Means are over tokens that count before one that
            counts.

        Raises:
            ConfigError: the model did not predict.
        """
        if self._untouched is None:
            raise ConfigError("The model did not predict, so its loss is unknown. Set predict=True in ContextStream.")

        def put(rows: Tensor, x: Tensor) -> Tensor:
            return x.masked_scatter(self.keep.to(x.device).unsqueeze(-1), rows.to(x.device, x.dtype))

        edits = {site: functools.partial(put, rows) for site, rows in replaced.items()}
        logits = self.model.run(
            *self.tokens, edits, special_tokens=True, activation_checkpointing=activation_checkpointing
        )
        losses = self._untouched.lost(logits)
        return {"ce": losses.ce.mean(), "kl": losses.kl.mean()}


class ContextStream(InTurn):
    """Serves `ContextBatch`es of a model at one or several sites.

    Arguments that `ActivationBuffer` has too mean the same.

    Args:
        data: the text (see `as_source`), or a `TokenStream` with its own `ctx_len` and `pack`.
        model: the language model, or its name (see `load_model`).
        batch_size: contexts in a batch.
        pack: joins documents into full contexts; else each is one context, cut and padded.
        predict: whether the model predicts, for end-to-end training; else it stops early.

    Raises:
        SiteError: a submodule is not in the model.
        ConfigError: an argument cannot be used.
        DataExhaustedError: the data ended, with `end_of_data="error"`.
    """

    @checked()
    def __init__(
        self,
        data: TextLike,
        model: ModelLike,
        submodule: SubmodulesLike,
        *,
        io: Sides = "out",
        ctx_len: int = 128,
        batch_size: int = 8,
        remove_bos: bool = True,
        pack: bool = True,
        predict: bool = True,
        end_of_data: EndOfData = "stop",
        exclude_tokens: Sequence[int | str] = (),
    ):
        if isinstance(data, (str, os.PathLike)):  # which may be missing: before the model is loaded
            data = as_source(data)
        self.model, self.end_of_data = load_model(model), end_of_data
        self.sites = self.model.sites(submodule, io)
        self.widths = self.model.widths(self.sites)
        self.batch_size, self.predict = batch_size, predict
        self.tokens = as_token_stream(
            data, self.model.tokenizer, ctx_len=ctx_len, model=self.model, end_of_data=end_of_data, pack=pack
        )
        self.filter = TokenFilter(
            exclude_ids=ids_to_exclude(self.tokens, remove_bos, exclude_tokens), exclude_first=remove_bos
        )
        self._has_served = False
        self._ahead: list[TokenBatch] = []  # read for a sample, and still to be served
        self._computed: list[ContextBatch] = []  # of the first of these, where the model does not predict
        self._expected: int | None = None  # batches that will still be served; None where that is not known
        self._before: dict[str, Any] | None = None  # the state before contexts that are not ahead yet

    def __iter__(self) -> Iterator[ContextBatch]:
        return self

    @in_turn
    @usual_state(autocast=False)
    def __next__(self) -> ContextBatch:
        if not self._ahead and not self._read_more():
            if not self._has_served:
                raise DataError(f"{self.tokens.source.name} holds no token that counts. Give more text.")
            raise StopIteration
        batch = self._computed[0] if self._computed else self._batch(self._ahead[0], self.predict)
        left, computed = self._ahead[1:], self._computed[1:]
        expected = None if self._expected is None else max(self._expected - 1, 0)
        # last, so that an interrupt loses no context
        self._ahead, self._computed, self._expected, self._has_served = left, computed, expected, True
        return batch

    @checked()
    @in_turn
    def sample(self, n: int) -> dict[Site, Float[Tensor, "n dim"]]:
        """Returns up to n rows that will be served later, at most those of one pass over the text.

        Raises:
            DataError: no token of the text counts.
        """
        parts: list[ContextBatch] = list(self._computed)
        this_pass = self.tokens.source.epoch
        while sum(len(part[self.sites[0]]) for part in parts) < n and len(parts) != (self._expected or -1):
            if len(parts) == len(self._ahead) and not self._read_more():
                break
            parts.append(self._batch(self._ahead[len(parts)], predict=False))
            if not self.predict:  # else the model has to run again, to its end
                self._computed = list(parts)
            if self.tokens.source.epoch != this_pass:
                break  # the text repeats, and a second pass would cost as much and add nothing
        if not parts:
            raise DataError(f"{self.tokens.source.name} holds no token that counts. Give more text.")
        return {site: torch.cat([part[site] for part in parts])[:n] for site in self.sites}

    @checked()
    @in_turn
    def expect(self, n_batches: int | None) -> None:
        """Says how many batches will be taken, of which a sample is a part; None: unknown."""
        self._expected = n_batches

    @in_turn
    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the text, and the contexts that were read ahead for a sample."""
        return {"tokens": self._before or self.tokens.state_dict(), "ahead": [tuple(tokens) for tokens in self._ahead]}

    @checked(wraps=DataError)
    @in_turn
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of a stream with the same arguments."""
        self.tokens.load_state_dict(state["tokens"])
        self._ahead, self._computed = [TokenBatch(*tokens) for tokens in state["ahead"]], []
        self._before, self._has_served = None, True  # or it was at the end of its data, which had tokens

    @property
    def config(self) -> dict[str, Any]:
        """Everything that determines the rows; stored with dictionaries trained on them."""
        return {
            "source": self.tokens.source.name,
            "model": self.model.describe(),
            "sites": [str(site) for site in self.sites],
            "ctx_len": self.tokens.ctx_len,
            "batch_size": self.batch_size,
            "pack": self.tokens.pack,
            "begins_with_bos": getattr(self.tokens, "begins_with_bos", None),
            "end_of_data": self.end_of_data,
            "filter": self.filter.to_dict(),
        }

    @property
    def norm_limits(self) -> dict[Site, float]:
        """No limits: tokens of a context stay together."""
        return {}

    @checked()
    def share(self, number: int, of: int) -> "ContextStream":
        """Returns a stream over one of `of` shares of the text."""
        part = copy.copy(self)
        part.tokens, part._ahead, part._has_served = self.tokens.share(number, of), [], False
        part._computed, part._expected, part._before = [], None, None
        return part

    def close(self) -> None:
        """Does nothing; a buffer has threads to stop here."""

    def _batch(self, tokens: TokenBatch, predict: bool) -> ContextBatch:
        return ContextBatch(self.model, tokens, self.filter.token_mask(tokens), self.sites, predict=predict)

    def _read_more(self) -> bool:
        """Reads the next contexts that hold a scored token; False at the end of the data."""
        if self._before is not None:  # an interrupt or an error ended the last call
            self.tokens.load_state_dict(self._before)
        for _ in range(2):  # two ends enclose a whole pass
            self._before = self.tokens.state_dict()
            while (tokens := self.tokens.take(self.batch_size)) is not None:
                keep = self.filter.token_mask(tokens)
                if (keep[:, :-1] & keep[:, 1:]).any():
                    ahead = [*self._ahead, tokens]
                    self._ahead, self._before = ahead, None
                    return True
                self._before = self.tokens.state_dict()
            if self.end_of_data == "error":
                raise DataExhaustedError(
                    f"{self.tokens.source.name} has ended. Give more text, or set end_of_data to 'stop' or 'repeat'."
                )
            if self.end_of_data == "stop":
                return False
            self.tokens.restart()
        raise DataError(f"{self.tokens.source.name} holds no token that counts. Give more text.")


class TokenLosses(NamedTuple):
    """Losses at each scored position, in nats."""

    ce: Float[Tensor, "n"]
    """-log q(next token)."""
    kl: Float[Tensor, "n"]
    """sum p (log p - log q), where p is the untouched model."""

    __repr__ = brief


class Predictions:
    """Predictions of the untouched model at the scored positions of a batch.

    A position is scored if its own token and the next one, which it predicts, are both in `keep`:
    neither padding nor a special token is. These are the tokens whose activations a graft replaces.
    """

    def __init__(self, logits: Float[Tensor, "batch ctx vocab"], tokens: TokenBatch, keep: Bool[Tensor, "batch ctx"]):
        self.scored = (keep[:, :-1] & keep[:, 1:]).to(logits.device)  # (batch, ctx - 1)
        self.targets: Int[Tensor, "n"] = tokens.input_ids[:, 1:].to(logits.device)[self.scored]
        with torch.no_grad():
            self.log_p: Float[Tensor, "n vocab"] = logits.new_empty(
                len(self.targets), logits.shape[-1], dtype=torch.float32
            )
            for rows, log_p in self._in_parts(logits):
                self.log_p[rows] = log_p

    def lost(self, logits: Float[Tensor, "batch ctx vocab"] | None = None) -> TokenLosses:
        """Returns the losses of a model q with these logits; by default of the untouched model."""
        if logits is None:
            return TokenLosses(_cross_entropy(self.log_p, self.targets), torch.zeros_like(self.log_p[:, 0]))
        parts = [self._lost(rows, log_q) for rows, log_q in self._in_parts(logits)]
        if not parts:
            return TokenLosses(self.log_p[:, 0], self.log_p[:, 0])
        return TokenLosses(torch.cat([part.ce for part in parts]), torch.cat([part.kl for part in parts]))

    def _lost(self, rows: slice, log_q: Float[Tensor, "part vocab"]) -> TokenLosses:
        log_p = self.log_p[rows]
        p = log_p.exp()
        # 0 log 0 is 0: a masked token has log p = -inf, and its log q may be -inf too
        terms = torch.where(p > 0, p * (log_p - log_q), 0)
        return TokenLosses(_cross_entropy(log_q, self.targets[rows]), terms.sum(-1))

    def _in_parts(
        self, logits: Float[Tensor, "batch ctx vocab"]
    ) -> Iterator[tuple[slice, Float[Tensor, "part vocab"]]]:
        """Yields log-probabilities in float32 of some scored positions at a time."""
        context, position = self.scored.nonzero(as_tuple=True)  # each (n,)
        n = len(context)
        # the gradient of each part would be as large as all logits
        n_rows = n if logits.requires_grad else max(1, _PART.get(logits.device.type, _PART["cuda"]) // logits.shape[-1])
        for start in range(0, n, max(n_rows, 1)):
            rows = slice(start, start + n_rows)
            yield rows, logits[context[rows], position[rows]].float().log_softmax(-1)


def _cross_entropy(log_q: Float[Tensor, "n vocab"], targets: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    return -log_q.gather(1, targets.unsqueeze(1)).squeeze(1)
