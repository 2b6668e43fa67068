"""`dictionary-learning contexts`: where the latents of saved dictionaries are active."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dictionary_learning._run_folder import resolve_latest
from dictionary_learning._trained_on import TrainedModel, buffer_of, common, held_out_of, model_of, text_of
from dictionary_learning._what_is import what_is
from dictionary_learning.cli._evaluate import contexts_as_trained, dtype_in_training, read_text
from dictionary_learning.cli._model_options import ModelArguments
from dictionary_learning.cli._options import ContextArguments
from dictionary_learning.cli._output import write_result
from dictionary_learning.cli._trust import load_trusted
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.evaluation import Candidate


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextsArguments(ModelArguments, ContextArguments):
    """Finds in one pass over a text where each latent is active, and prints the store's folder.

    It holds for each latent top, quantile and quiet examples, and exact figures. The same command
    continues after one that was killed.
    """

    positional: ClassVar = ("model",)
    model: str
    """The language model, or the folder of a run, with its model, its dictionaries and its held-out
    text."""
    save_dir: str
    """The folder for the store."""
    dictionaries: tuple[str, ...] = ()
    """Folders of dictionaries, or of whole runs; of other packages too; by default those of the
    run."""
    data: str | None = None
    """The text; by default the documents that were held out of training."""
    sites: tuple[str, ...] = ()
    """The site of each dictionary, or one for all; by default as its files or its folder say."""
    n_tokens: int = 1_000_000
    """Tokens to read."""
    ctx_len: int | None = None
    """Tokens in a context; by default as in training, or 128."""
    batch_size: int = 16
    """Contexts in a forward pass."""
    window: tuple[int, ...] = (24, 8)
    """Tokens of an example before and after the one that it was chosen for."""
    n_top: int = 20
    """Examples with the largest activations."""
    n_quantiles: int = 5
    """Groups of equal size into which the active tokens are cut by activation."""
    per_quantile: int = 5
    """Examples of each group."""
    n_quiet: int = 10
    """Windows on which a latent is never active."""
    seed: int = 0
    """Seed of what is sampled."""
    checkpoint_every: int = 250
    """Batches between two checkpoints."""

    def run(self) -> None:
        from dictionary_learning.cli._candidates import candidates_of
        from dictionary_learning.interop._saved import own_folders
        from dictionary_learning.interpretation import collect_contexts

        is_run = bool(own_folders(resolve_latest(self.model)))
        places = self.dictionaries or ((self.model,) if is_run else ())
        if not places:
            told = what_is(resolve_latest(self.model)) or "Give --dictionaries, or a run in its place."
            raise ConfigError(f"'{self.model}' holds no dictionary. {told}")
        named = None if is_run else self.model
        saved = load_trusted(places, named, self, "--dictionaries RUN, and in its place the model")
        advice = "Give the model instead of the run."
        wanted = (
            common(saved, "language models", model_of, advice) if is_run else TrainedModel(self.model, self.revision)
        )
        if wanted is None:
            raise ConfigError(f"'{saved[0].name}' does not say which model it was trained on. {advice}")
        if not self.data:
            common(saved, "texts", held_out_of, "Give --data.")
        text = next((told for one in saved if (told := text_of(one.config))), None)
        ctx_len = self.ctx_len or common(saved, "context lengths", _ctx_len_of, "Give --ctx-len.")
        documents = read_text(self, self.data, text)  # an error in it comes before the model is loaded
        model = self.load(wanted.name, wanted.revision, dtype_in_training(self, saved))
        stream = contexts_as_trained(self, saved, documents, model, ctx_len)
        found = _named(candidates_of(saved, model, self.sites))
        collect_contexts(
            model,
            {name: one.dictionary for name, one in found.items()},
            stream,
            self.save_dir,
            sites={name: one.site for name, one in found.items() if one.site is not None},
            ctx_len=stream.ctx_len,
            pack=stream.pack,
            **self.options(
                *("n_tokens", "batch_size", "window", "n_top", "n_quantiles", "per_quantile", "n_quiet"),
                *("seed", "checkpoint_every"),
            ),
        )
        write_result(self.save_dir)


def _ctx_len_of(config: Mapping[str, Any]) -> int | None:
    return buffer_of(config).get("ctx_len")


def _named(candidates: "list[Candidate]") -> "dict[str, Any]":
    """Returns candidates by name; a second "a" is "a #2"."""
    found: dict[str, Any] = {}
    for one in candidates:
        names = itertools.chain([one.name], (f"{one.name} #{n}" for n in itertools.count(2)))
        found[next(name for name in names if name not in found)] = one
    return found
