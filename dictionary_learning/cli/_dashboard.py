"""`dictionary-learning dashboard` and `serve`: pages of latents, and latents tried out."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from dictionary_learning._trained_on import TrainedModel, buffer_of, common, model_of, text_of
from dictionary_learning.cli._model_options import ModelArguments
from dictionary_learning.cli._options import ContextArguments
from dictionary_learning.cli._output import write_line, write_result
from dictionary_learning.cli._trust import load_trusted
from dictionary_learning.config import setting
from dictionary_learning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dictionary_learning.dashboards import DictionaryPage
    from dictionary_learning.data import Source
    from dictionary_learning.evaluation import Candidate
    from dictionary_learning.interop._saved import Saved
    from dictionary_learning.interpretation import ContextStore
    from dictionary_learning.models import TracedModel

logger = logging.getLogger(__name__)

_CONTEXTS = "contexts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DashboardArguments(ModelArguments, ContextArguments):
    """Writes pages about the latents of dictionaries, and prints the path of the first.

    Takes stores of contexts, dictionaries, and runs. Those that are in no store are read now, on
    the text that was held out of their training; their store is kept in the pages' folder.
    """

    positional: ClassVar = ("places",)
    places: tuple[str, ...]
    """Stores of contexts, and folders of dictionaries or runs."""
    save_dir: str
    """The folder for the pages: new, or that of earlier pages, which are replaced."""
    title: str | None = None
    """What stands at the top; by default the model's name."""
    sites: tuple[str, ...] = ()
    """The site of each dictionary, or one for all; by default as its files or its folder say."""
    target_sites: tuple[str, ...] = ()
    """The same for what is written, if that is something else; its tokens are promoted and
    suppressed."""
    model: str | None = None
    """The language model; by default the one that the dictionaries were trained on."""
    data: str | None = None
    """The text; by default the documents that were held out of training."""
    n_tokens: int = 1_000_000
    """Tokens to read, if the text has as many."""
    ctx_len: int | None = None
    """Tokens in a context; by default as in training, or 128."""
    batch_size: int = 16
    """Contexts in a forward pass."""
    n_top: int = setting(20, at_least=1)
    """Contexts with the largest activations of each latent."""
    n_quantiles: int = setting(5, at_least=1)
    """Groups of equal size into which the tokens where it is active are cut by activation."""
    per_quantile: int = setting(5, at_least=0)
    """Contexts of each group."""
    n_quiet: int = setting(10, at_least=0)
    """Windows on which it is never active."""
    n_shown: int = setting(10, at_least=1)
    """Neighbors, promoted and suppressed tokens of each latent."""
    map: Literal["auto", "umap", "pca"] = "auto"
    """How latents are placed on the map; auto is UMAP where umap-learn is installed."""

    def run(self) -> None:
        from dictionary_learning.dashboards import write_dashboard
        from dictionary_learning.dashboards._writing import check_folder
        from dictionary_learning.interpretation import ContextStore
        from dictionary_learning.models import shown_name

        check_folder(Path(self.save_dir))  # before a long pass over text
        stores = [ContextStore.open(place) for place in self.places if _is_store(place)]
        others = [place for place in self.places if not _is_store(place)]
        saved = load_trusted(others, self.model, self)
        if not saved:
            self._check_used()
        model: TracedModel | None = None
        known: dict[str, Candidate] = {}
        if saved:
            _named_model(saved, self)  # an error in it, or in the text, comes before the model is loaded
            documents = None if stores else self._documents(saved)
            model, known = load_with_model(saved, self, self.target_sites)
            unread = [one for one in known.values() if not any(one.name in store for store in stores)]
            if unread:
                stores.append(self._collected(unread, saved, model, documents or self._documents(saved)))
        pages = self._pages(stores, known, model)
        first = stores[0]
        name = shown_name(first.model) or "a model"
        about = f"{name}, {first.data['n_tokens_read']:,} tokens of {first.data.get('source')}"
        page = write_dashboard(pages, self.save_dir, title=self.title or f"Latents of {name}", about=about)
        _link_from_report(page, {one.name for one in pages})
        write_result(str(page))

    def _check_used(self) -> None:
        """Raises ConfigError if something is given that stores of contexts have no use for."""
        given = [name for name in ("sites", "target_sites", "model", "data") if getattr(self, name)]
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise ConfigError(
                f"Got {option}, and only stores of contexts, which have been read already. Give the folders of their "
                f"dictionaries too, or leave {option} out."
            )

    def _documents(self, saved: "Sequence[Saved]") -> "Source":
        from dictionary_learning.cli._evaluate import read_text

        if not self.data:
            common(saved, "texts", text_of, "Give --data.")
        return read_text(self, self.data, next((told for one in saved if (told := text_of(one.config))), None))

    def _collected(
        self, candidates: "Sequence[Candidate]", saved: "Sequence[Saved]", model: "TracedModel", documents: "Source"
    ) -> "ContextStore":
        """Reads the text, and returns the contexts of dictionaries."""
        from dictionary_learning.cli._evaluate import contexts_as_trained
        from dictionary_learning.interpretation import collect_contexts

        ctx_len = self.ctx_len or common(
            saved, "context lengths", lambda config: buffer_of(config).get("ctx_len"), "Give --ctx-len."
        )
        stream = contexts_as_trained(self, saved, documents, model, ctx_len)
        return collect_contexts(
            model,
            {one.name: one.dictionary for one in candidates},
            stream,
            Path(self.save_dir) / _CONTEXTS,
            sites={one.name: one.site for one in candidates if one.site is not None},
            ctx_len=stream.ctx_len,
            pack=stream.pack,
            **self.options("n_tokens", "batch_size", "n_top", "n_quantiles", "per_quantile", "n_quiet"),
        )

    def _pages(
        self, stores: "Sequence[ContextStore]", known: "dict[str, Candidate]", model: "TracedModel | None"
    ) -> "list[DictionaryPage]":
        from dictionary_learning.dashboards import pages_of

        found: list[DictionaryPage] = []
        for store in stores:
            mine = {name: one.dictionary for name, one in known.items() if name in store}
            asked = {name: known[name].target for name in mine if self.target_sites}
            targets = {name: target for name, target in asked.items() if target is not None}
            found += pages_of(
                store, mine, model if mine else None, target_sites=targets, n=self.n_shown, map_method=self.map
            )
        names = [page.name for page in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"Two of the stores hold a dictionary '{twice}'. Write pages for each store.")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeArguments(ModelArguments):
    """Serves a page that shows latents of a typed text, and changes them while the model writes.

    Prints its address. Only this machine may open it, unless --host says another; Ctrl-C ends it.
    """

    positional: ClassVar = ("dictionaries",)
    dictionaries: tuple[str, ...]
    """Folders of dictionaries, or of whole runs; of other packages too, and hub repositories."""
    sites: tuple[str, ...] = ()
    """The site of each, or one for all; by default as its files or its folder say."""
    model: str | None = None
    """The language model; by default the one that they were trained on."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = setting(8765, at_least=0, at_most=65535)
    """The port; 0 for any that is free."""

    def run(self) -> None:
        from dictionary_learning.dashboards import LiveServer

        saved = load_trusted(self.dictionaries, self.model, None)
        model, found = load_with_model(saved, self)
        server = LiveServer(
            model,
            {name: one.dictionary for name, one in found.items()},
            sites={name: one.site for name, one in found.items() if one.site is not None},
            **self.options("host", "port"),
        )
        write_line(server.url)
        logger.info("Open this address in a browser. Ctrl-C ends the server.")
        server.run()


def load_with_model(
    saved: "Sequence[Saved]", given: DashboardArguments | ServeArguments, target_sites: Sequence[str] = ()
) -> "tuple[TracedModel, dict[str, Candidate]]":
    """Returns the model of dictionaries, the one asked for or that of their training; and them at
    their sites, by their names.

    Raises:
        ConfigError: They do not say which model, or different ones; or do not belong to it.
    """
    from dictionary_learning.cli._candidates import candidates_of
    from dictionary_learning.cli._evaluate import dtype_in_training

    named = _named_model(saved, given)
    model = given.load(named.name, named.revision, dtype_in_training(given, saved))
    return model, {one.name: one for one in candidates_of(saved, model, given.sites, target_sites)}


def _named_model(saved: "Sequence[Saved]", given: DashboardArguments | ServeArguments) -> TrainedModel:
    trained_on = None if given.model else common(saved, "language models", model_of, "Give --model.")
    found = TrainedModel(given.model, None) if given.model else trained_on
    if found is None:
        raise ConfigError(f"'{saved[0].name}' does not say which model it was trained on. Give --model.")
    return found


def _link_from_report(page: Path, names: set[str]) -> None:
    """Adds a link to the report of the run in whose folder the pages are, if it is one of them."""
    from dictionary_learning.evaluation import read_report
    from dictionary_learning.evaluation.reports import add_link

    folder = page.parent.parent
    if not (folder / "report.json").is_file():
        return
    try:
        if names & {entry.name for entry in read_report(folder).dictionaries}:
            add_link(folder, "Pages of the latents", page)
    except DataError as error:
        logger.warning("The report has no link to the pages. %s", error)


def _is_store(place: str) -> bool:
    """Returns whether a folder is a store of contexts."""
    return (Path(place) / "index.json").is_file() and (Path(place) / f"{_CONTEXTS}.safetensors").is_file()
