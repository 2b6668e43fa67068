"""`dictionary-learning explain`: latents explained and scored by a judge."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any, ClassVar

from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.cli._output import write_line, write_result
from dictionary_learning.config import setting
from dictionary_learning.errors import ConfigError

logger = logging.getLogger(__name__)

_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainArguments(CommandArguments):
    """Explains latents in words, and scores how well the words hold on other examples.

    Prints the path of explanations.json. Every answer is kept beside it, so that the same command
    asks only for what is missing. Keys of endpoints come from the environment.
    """

    positional: ClassVar = ("store",)
    store: str
    """A folder of contexts, as collect_contexts writes it."""
    dictionary: str | None = None
    """The name of the dictionary; by default the only one."""
    latents: tuple[str, ...]
    """Numbers and ranges, as 5 10-19, or all."""
    judge: str = "baseline"
    """Who explains: baseline, openai:MODEL@URL for any endpoint of that form, or local:PATH."""
    scorer: str | None = None
    """Who is asked for the scores; by default the judge."""
    embedder: str = "baseline"
    """Whose vectors the score embedding compares; named as a judge is."""
    scores: tuple[str, ...] = ("detection", "fuzzing")
    """Among detection, fuzzing, simulation and embedding; none for no score."""
    key_variable: str = "OPENAI_API_KEY"
    """The variable of the environment that holds the key of an endpoint."""
    n_parallel: int = setting(8, at_least=1)
    """Requests to an endpoint at once."""
    n_shown: int = setting(20, at_least=1)
    """Examples of activity that the judge sees."""
    n_scored: int = setting(30, at_least=1)
    """Other examples that score, at most, with as many quiet ones."""
    seed: int = 0
    """Seed of the choice of examples."""
    dry_run: bool = False
    """Whether only requests and tokens are estimated, and nothing is asked."""
    prompt_price: float | None = setting(None, at_least=0)
    """The price of a million tokens of questions, for the estimate."""
    answer_price: float | None = setting(None, at_least=0)
    """The price of a million tokens of answers, for the estimate."""

    def run(self) -> None:
        from dictionary_learning.interpretation import ContextStore
        from dictionary_learning.interpretation.explanations import ExplanationConfig, estimate_cost, explain
        from dictionary_learning.interpretation.explanations._explain import check_scores
        from dictionary_learning.interpretation.explanations._files import EXPLANATIONS
        from dictionary_learning.interpretation.explanations._names import embedder_of, judge_of
        from dictionary_learning.interpretation.explanations._summary import summarize_scores

        store = ContextStore.open(self.store)
        contexts = store[only_name(self.dictionary, store.names)]
        scores = () if self.scores == ("none",) else self.scores
        check_scores(scores)
        latents = read_latents(self.latents, contexts.dict_size)
        asking = self.options("key_variable", "n_parallel")
        folder = Path(self.store) / contexts.facts["folder"]
        given: dict[str, Any] = {
            "judge": judge_of(self.judge, **asking),
            "scorer": None if self.scorer is None else judge_of(self.scorer, **asking),
            "embedder": embedder_of(self.embedder, **asking),
            "scores": scores,
            "folder": folder,
            "config": ExplanationConfig(**self.options("n_shown", "n_scored", "seed")),
        }
        if self.dry_run:
            prices = self.options("prompt_price", "answer_price")
            write_line(str(estimate_cost(contexts, latents, **given, **prices)))
            return
        made = explain(contexts, latents, **given)
        for line in summarize_scores(made.values()):
            logger.info("%s", line)
        write_result(str(folder / EXPLANATIONS))


def only_name(given: str | None, names: list[str]) -> str:
    """Returns the dictionary that is asked for, or the only one.

    Raises:
        ConfigError: There are several.
    """
    if given is not None:
        return given
    if len(names) != 1:
        raise ConfigError(f"The store holds {len(names)} dictionaries: {', '.join(names)}. Give --dictionary.")
    return names[0]


def read_latents(words: tuple[str, ...], dict_size: int) -> list[int]:
    """Returns the latents that numbers and ranges name, each once, in their order.

    Raises:
        ConfigError: A word is neither, or names no latent.
    """
    found: dict[int, None] = {}
    for word in words:
        match = _RANGE.fullmatch(word)
        if word != "all" and match is None:
            raise ConfigError(f"Got --latents {word}; give numbers and ranges, as 5 10-19, or all.")
        first, last = (0, dict_size - 1) if match is None else (int(match[1]), int(match[2] or match[1]))
        if not first <= last < dict_size:
            raise ConfigError(f"Got --latents {word}; there are latents 0 to {dict_size - 1}. Give some of these.")
        found.update(dict.fromkeys(range(first, last + 1)))
    return list(found)
