"""What a model predicts at each token of a text, and how it ranks an answer that is expected."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._brief import brief
from dictionary_learning._types import ModelLike
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.interpretation._token_text import ids_of, pieces_of, texts_alone, texts_of
from dictionary_learning.interpretation._token_views import TokenView, show_tokens, visible
from dictionary_learning.interventions import read_latents
from dictionary_learning.interventions._inputs import as_tokens
from dictionary_learning.latents import to_dense
from dictionary_learning.models import TracedModel, load_model


class TokenPredictions(NamedTuple):
    """What a model predicted for each token of a text; of the first it predicts nothing."""

    input_ids: Int[Tensor, "ctx"]
    tokens: list[str]
    log_probs: Float[Tensor, "ctx"]
    """Of each token, given those before it; NaN for the first."""
    ranks: Int[Tensor, "ctx"]
    """Tokens that were more likely; -1 for the first."""
    top_ids: Int[Tensor, "ctx n"]
    """The most likely tokens at each place, also where the first stands: -1 there."""
    top_tokens: list[list[str]]
    top_log_probs: Float[Tensor, "ctx n"]

    __repr__ = brief

    def show(self) -> TokenView:
        """Returns a view: blue for what surprised the model, with what it expected as a tip."""
        tips = ["nothing comes before it"]
        for i in range(1, len(self.tokens)):
            probability, rank = math.exp(self.log_probs[i]), int(self.ranks[i]) + 1
            best = zip(self.top_tokens[i], self.top_log_probs[i].exp().tolist(), strict=True)
            lines = [f"{100 * p:5.1f}%  {visible(token)}" for token, p in best]
            tips.append("\n".join([f"probability {100 * probability:.2f}%, rank {rank}", *lines]))
        return show_tokens(self.tokens, {"log-probability": self.log_probs}, tips=tips)


@checked()
@torch.no_grad()
def token_predictions(model: ModelLike, text: str | Int[Tensor, "ctx"], *, n: int = 5) -> TokenPredictions:
    """Returns how likely each token of a text is, and which ones were likelier.

    Args:
        model: The language model, or its name.
        text: A text, or its token ids.
        n: Most likely tokens at each place.

    Raises:
        ConfigError: n is not 1 to the size of the vocabulary.
        DataError: There is no text.
    """
    traced = load_model(model)
    ids = as_tokens(traced, text).input_ids
    log_probs = _log_probs(traced, ids)[:-1]  # (ctx - 1, vocab)
    if not 1 <= n <= log_probs.shape[-1]:
        raise ConfigError(f"Got n={n}; the model has {log_probs.shape[-1]} tokens. Give 1 to that many.")
    row = ids[0].to(log_probs.device)
    own = log_probs.gather(1, row[1:, None])  # (ctx - 1, 1)
    best = log_probs.topk(n, dim=-1)
    first = {"own": own.new_full((1,), float("nan")), "rank": row.new_full((1,), -1)}
    top_ids = torch.cat([row.new_full((1, n), -1), best.indices])
    top_tokens = [[], *(_texts(traced, each) for each in best.indices.tolist())]
    return TokenPredictions(
        ids[0],
        texts_of(traced.tokenizer, ids[0].tolist()),
        torch.cat([first["own"], own[:, 0]]).cpu(),
        torch.cat([first["rank"], (log_probs > own).sum(-1)]).cpu(),
        top_ids.cpu(),
        top_tokens,
        torch.cat([best.values.new_full((1, n), float("nan")), best.values]).cpu(),
    )


@checked()
def latent_view(
    model: ModelLike, dictionary: Dictionary, text: str, latents: Sequence[int] | int, *, site: Any = None
) -> TokenView:
    """Returns a view of a text by the activations of latents, one series for each.

    Args:
        model: The language model, or its name.
        dictionary: The dictionary.
        text: The text.
        latents: The numbers of the latents.
        site: The site that it reads; by default the one that it knows.

    Raises:
        ConfigError: A latent is not in the dictionary, or there is none.
    """
    chosen = [latents] if isinstance(latents, int) else list(latents)
    wrong = next((i for i in chosen if not 0 <= i < dictionary.dict_size), None)
    if wrong is not None:
        raise ConfigError(f"Got latent {wrong}; the dictionary has latents 0 to {dictionary.dict_size - 1}.")
    traced = load_model(model)
    reading = read_latents(traced, dictionary, text, site=site)
    columns = to_dense(reading.latents)[:, chosen]  # (n, latents)
    values = columns.new_zeros(reading.mask.shape[1], len(chosen))
    values[reading.mask[0].to(values.device)] = columns
    tokens = texts_of(traced.tokenizer, reading.input_ids[0].tolist())
    return show_tokens(tokens, {f"latent {i}": values[:, at] for at, i in enumerate(chosen)})


class AnswerToken(NamedTuple):
    """A token of an expected answer, given the prompt and the tokens of the answer before it."""

    token: str
    rank: int
    """Tokens that are more likely."""
    probability: float
    logit: float
    likeliest: str
    """The most likely token at its place."""


class PromptTest(NamedTuple):
    """How a model continues a prompt, and where the expected answer stands."""

    prompt: str
    answers: tuple[tuple[AnswerToken, ...], ...]
    """The tokens of each answer."""
    top: tuple[AnswerToken, ...]
    """The most likely next tokens after the prompt."""
    answer_texts: tuple[str, ...]
    """Each answer, with the space that it got."""

    @property
    def log_probs(self) -> tuple[float, ...]:
        """The log-probability of each whole answer."""
        return tuple(sum(math.log(max(one.probability, 1e-45)) for one in answer) for answer in self.answers)

    def __str__(self) -> str:
        lines = [f"Prompt: {self.prompt!r}"]
        for text, answer, log_prob in zip(self.answer_texts, self.answers, self.log_probs, strict=True):
            lines.append(f"Answer: {text!r}, probability {100 * math.exp(log_prob):.3g}%")
            lines += [f"  rank {one.rank:>6}  {_line(one)}  (likeliest: {one.likeliest!r})" for one in answer]
        lines.append("Next tokens:")
        lines += [f"  rank {one.rank:>6}  {_line(one)}" for one in self.top]
        return "\n".join(lines)

    __repr__ = __str__


@checked()
@torch.no_grad()
def test_prompt(
    model: ModelLike, prompt: str, answer: str | Sequence[str], *, n: int = 10, prepend_space: bool = True
) -> PromptTest:
    """Returns the rank and the probability of an expected answer, and the most likely next tokens.

    Args:
        model: The language model, or its name.
        prompt: What comes before.
        answer: The answer, or several.
        n: Most likely tokens.
        prepend_space: Whether an answer that does not begin with a space gets one.

    Raises:
        ConfigError: n is below 1.
        DataError: The prompt or an answer has no token.
    """
    if n < 1:
        raise ConfigError(f"Got n={n}; give at least 1.")
    traced = load_model(model)
    before = as_tokens(traced, prompt).input_ids
    answers: dict[str, tuple[AnswerToken, ...]] = {}
    for given in [answer] if isinstance(answer, str) else answer:
        text = f" {given}" if prepend_space and not given.startswith(" ") else given
        ids = ids_of(traced.tokenizer, text, add_special_tokens=False)
        if not given or not ids:
            raise DataError(f"Got the answer {given!r}, which has no token. Give a text that is not empty.")
        logits = _logits(traced, torch.cat([before, torch.tensor([ids])], dim=1))[before.shape[1] - 1 : -1]
        answers[text] = tuple(_answer_token(traced, row, i) for row, i in zip(logits, ids, strict=True))
    last = _logits(traced, before)[-1]
    best: list[int] = last.topk(min(n, len(last))).indices.tolist()
    top = tuple(_answer_token(traced, last, i) for i in best)
    return PromptTest(prompt, tuple(answers.values()), top, tuple(answers))


test_prompt.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  # no test, whatever pytest thinks


def _answer_token(model: TracedModel, logits: Float[Tensor, "vocab"], token: int) -> AnswerToken:
    probability = float(logits.softmax(-1)[token])
    own, likeliest = _texts(model, [token, int(logits.argmax())])
    return AnswerToken(own, int((logits > logits[token]).sum()), probability, float(logits[token]), likeliest)


def _texts(model: TracedModel, ids: Sequence[int]) -> list[str]:
    """Returns the text of each token by itself."""
    return texts_alone(pieces_of(model.tokenizer, ids))


def _line(one: AnswerToken) -> str:
    return f"{100 * one.probability:7.3f}%  logit {one.logit:8.3f}  {one.token!r}"


def _logits(model: TracedModel, ids: Int[Tensor, "batch ctx"]) -> Float[Tensor, "ctx vocab"]:
    logits = model.run(ids, torch.ones_like(ids, dtype=torch.bool))
    return logits[0].float()


def _log_probs(model: TracedModel, ids: Int[Tensor, "batch ctx"]) -> Float[Tensor, "ctx vocab"]:
    return _logits(model, ids).log_softmax(-1)
