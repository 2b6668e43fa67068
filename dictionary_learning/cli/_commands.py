"""The commands that need one config and few lines: to write, convert and list."""

import dataclasses
import logging
from typing import Any, ClassVar, Literal

from dictionary_learning._said import check_contexts_said
from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.cli._compare import CompareArguments
from dictionary_learning.cli._completion import CompletionArguments
from dictionary_learning.cli._contexts import ContextsArguments
from dictionary_learning.cli._dashboard import DashboardArguments, ServeArguments
from dictionary_learning.cli._downstream import DownstreamArguments
from dictionary_learning.cli._evaluate import EvaluateArguments
from dictionary_learning.cli._explain import ExplainArguments
from dictionary_learning.cli._export import ExportArguments
from dictionary_learning.cli._info import InfoArguments
from dictionary_learning.cli._options import CaptureArguments, ContextArguments
from dictionary_learning.cli._output import write_result
from dictionary_learning.cli._plan import PlanArguments
from dictionary_learning.cli._reproduce import ReproduceArguments
from dictionary_learning.cli._sweep import SweepArguments

logger = logging.getLogger(__name__)

_SHOWN = 400
"""The most sites of a release that are listed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheArguments(CaptureArguments):
    """Writes activations into a folder, for train --cache; info --verify checks it.

    The same command continues after a writer that was stopped at any point. Under torchrun, each
    process writes its share of the text.
    """

    positional: ClassVar = ("model", "data")
    model: str
    """The language model: a name on the Hugging Face hub, a local folder, or a GGUF file."""
    data: str
    """The data: a file (.txt, .jsonl, .parquet, .npy and others), a folder or pattern of files, or
    a data set on the hub."""
    out: str
    """The folder for the cache, or an address such as s3://bucket/folder. An unfinished cache there
    is continued."""
    n_tokens: int | None = None
    """Tokens to write; by default all."""
    shard_size: int = 65_536
    """Rows in a file; they are in memory together, and shuffled."""
    storage_dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    """The type of the stored rows; by default the model's dtype."""
    compression: Literal["zstd"] | None = None
    """Compresses the files, which then cannot be mapped into memory."""
    seed: int = 0
    """Seed of the shuffle."""

    def run(self) -> None:
        from dictionary_learning.activations.cache import write_cache
        from dictionary_learning.parallel import only_first_talks, start

        with only_first_talks(start()):
            text = self.divided(self.data, self.held_out_every)[0]
            model = self.load(self.model)
            write_cache(
                self.out,
                self.contexts(text, model, self.ctx_len),
                model,
                self.sites_of(model),
                dtype=self.storage_dtype,
                run_cfg=self.to_dict(),
                **self.options("n_tokens", "shard_size", "compression", "seed"),
                **self.reading,
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretokenizeArguments(ContextArguments):
    """Writes the contexts of a text into a folder, which train and evaluate read as data.

    It can be put on the hub.
    """

    positional: ClassVar = ("data",)
    data: str
    """The data: a file (.txt, .jsonl, .parquet and others), a folder or pattern of files, or a data
    set on the hub."""
    model: str
    """The language model whose tokenizer is used: a name on the Hugging Face hub, a local folder,
    or a GGUF file."""
    out: str
    """The folder for the contexts; it must not exist."""
    ctx_len: int = 128
    """Tokens in a context."""
    revision: str | None = None
    """The model's branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Whether code that comes with the tokenizer is run."""
    push: str | None = None
    """A data set on the hub, as user/name, to upload the contexts to."""

    def run(self) -> None:
        from dictionary_learning.data import pretokenize
        from dictionary_learning.models import load_tokenizer

        tokenizer = load_tokenizer(self.model, self.revision, self.trust_remote_code)
        options = {**self.tokens(), **self.options("ctx_len", "push")}
        text = self.source(self.data)
        check_contexts_said(self, text, self.said)
        pretokenize(text, tokenizer, self.out, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertArguments(CommandArguments):
    """Converts dictionaries.

    Reads every format that load_dictionary reads; an unknown --format lists them. Prints the path
    of each folder that it writes.
    """

    positional: ClassVar = ("source", "destination")
    source: str
    """A folder, a file of weights, or a repository of the Hugging Face hub."""
    destination: str
    """The folder to write; each of several dictionaries gets a folder in it."""
    to: str = "own"
    """The format to write: own, dictionary_learning, sparsify or sae_lens."""
    site: str | None = None
    """One of several dictionaries: a folder or file in the source, as layers.10; by default all."""
    format: str | None = None
    """The format of the source, if its files do not tell."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    hook_name: str | None = None
    """TransformerLens' name of the site that is read, for sae_lens, as blocks.5.hook_resid_post."""
    hook_name_out: str | None = None
    """The same of the site that is written, for a transcoder."""
    model_name: str | None = None
    """TransformerLens' name of the model, for sae_lens, as gpt2-small."""
    k: int | None = None
    """The k of the dictionary, if the files do not tell."""
    scale: float | None = None
    """The factor on activations before encoding, if the files do not tell."""
    dict_class: str | None = None
    """The class of dictionary_learning, if there is no config."""

    def run(self) -> None:
        from dictionary_learning._run_folder import resolve_latest
        from dictionary_learning.interop import convert

        # a fact that is not given must not stand in for what the files tell
        given = {name: value for name, value in self.to_dict().items() if value is not None}
        source, destination = given.pop("source"), given.pop("destination")
        write_result([str(folder) for folder in convert(resolve_latest(source), destination, **given)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedArguments(CommandArguments):
    """Lists public releases that this package loads, and with --sites the sites of each."""

    positional: ClassVar = ("name",)
    name: str | None = None
    """A part of the release's name."""
    model: str | None = None
    """A part of the model's name."""
    site: str | None = None
    """A part of the path of one of its dictionaries, as resid_post or layer_12."""
    sites: bool = False
    """Whether the sites of each release are listed."""

    def run(self) -> None:
        from dictionary_learning.interop import list_pretrained

        found = list_pretrained(self.model, self.site, self.name)
        rows: list[dict[str, Any]] = []
        lines: list[str] = []
        for release in found:
            sites = [site for site in release.sites if (self.site or "").lower() in site.lower()] if self.sites else []
            facts = {"name": release.name, "model": release.model, "format": release.format, "repo": release.repo}
            rows.append({**facts, **({"sites": sites} if self.sites else {})})
            lines += ["  ".join(facts.values()), *(f"    {site}" for site in sites[:_SHOWN])]
            if len(sites) > _SHOWN:
                lines.append(f"    and {len(sites) - _SHOWN} more")
        write_result(rows, lines)
        if not found:
            logger.info("No known release fits. load_dictionary('owner/name') loads any repository by its name.")


ARGUMENTS: dict[str, type[CommandArguments]] = {
    "sweep": SweepArguments,
    "evaluate": EvaluateArguments,
    "plan": PlanArguments,
    "contexts": ContextsArguments,
    "compare": CompareArguments,
    "cache": CacheArguments,
    "pretokenize": PretokenizeArguments,
    "explain": ExplainArguments,
    "export": ExportArguments,
    "info": InfoArguments,
    "convert": ConvertArguments,
    "pretrained": PretrainedArguments,
    "completion": CompletionArguments,
    "reproduce": ReproduceArguments,
    "dashboard": DashboardArguments,
    "serve": ServeArguments,
    "downstream": DownstreamArguments,
}
"""The arguments of each command but `train`, whose options depend on the method."""
