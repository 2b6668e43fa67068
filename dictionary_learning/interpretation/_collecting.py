"""One pass over text: where every latent of several dictionaries is active, and how strongly."""

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dictionary_learning._border import checked
from dictionary_learning._checkpoint import (
    complete_checkpoints,
    read_checkpoint,
    read_manifest,
    remove_checkpoints,
    write_checkpoint,
)
from dictionary_learning._disk import remove_unfinished
from dictionary_learning._hardware import check_memory
from dictionary_learning._plain import counted, differences, to_plain
from dictionary_learning._provenance import contents_of_text
from dictionary_learning._run_folder import claim_run_folder
from dictionary_learning._stop_request import StopRequest
from dictionary_learning._types import ModelLike, SubmodulesLike, TextLike
from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.data import as_source
from dictionary_learning.errors import CheckpointError, ConfigError, Stopped
from dictionary_learning.interpretation._collector import Collector, Wanted
from dictionary_learning.interpretation._index import INDEX, read_index
from dictionary_learning.interpretation._pass import LatentPass, check_read, members_of, open_stream
from dictionary_learning.interpretation._spool import Spool
from dictionary_learning.interpretation._store import ContextStore
from dictionary_learning.interpretation._writing import write_store
from dictionary_learning.models import load_model

logger = logging.getLogger(__name__)

_CHECKPOINTS, _SPOOL = "checkpoints", ".contexts.bin"


@checked()
def collect_contexts(
    model: ModelLike,
    dictionaries: Any,
    data: TextLike,
    save_dir: str | os.PathLike[str],
    *,
    sites: Mapping[str, SubmodulesLike] | None = None,
    n_tokens: int = 1_000_000,
    ctx_len: int = 128,
    batch_size: int = 16,
    pack: bool = True,
    window: Sequence[int] = (24, 8),
    n_top: int = 20,
    n_quantiles: int = 5,
    per_quantile: int = 5,
    n_quiet: int = 10,
    token_filter: TokenFilter | None = None,
    seed: int = 0,
    resume: Literal["auto", "never"] = "auto",
    checkpoint_every: int = 250,
) -> ContextStore:
    """Reads text once, and stores contexts and figures of every latent of several dictionaries.

    The model makes one forward pass for each batch, up to the last site. Exact are the figures of
    each latent and its top examples, at most one of a context. Its quantiles are made of a uniform
    sample of the tokens where it is active, and of all of them if they are few. Its quiet windows
    are drawn from a sample of windows that all latents share. Memory depends on the latents and the
    examples that are kept, not on the text.

    A call that was killed is continued by the same call, and writes the same bytes. A folder that
    holds its result already is opened.

    Args:
        model: The language model, or its name.
        dictionaries: Dictionaries by name, or their folders, or one of them.
        data: The text, or a stream of contexts with its own length and packing.
        save_dir: The folder to write.
        sites: The sites of dictionaries that know none, by name.
        n_tokens: Tokens to read, without padding; fewer if the text ends.
        ctx_len: Tokens in a context.
        batch_size: Contexts in a forward pass.
        pack: Whether documents are packed into full contexts.
        window: Tokens before and after the one that an example was chosen for, in the same context.
        n_top: Examples with the largest activations.
        n_quantiles: Groups of equal size into which the active tokens are cut by activation.
        per_quantile: Examples of each group.
        n_quiet: Windows on which a latent is never active.
        token_filter: Which tokens count; by default for each dictionary those that counted in its
            training, or all but padding, special tokens and the first of each context.
        seed: Of what is sampled.
        resume: "never" refuses a folder that holds something of an earlier call.
        checkpoint_every: Batches between two checkpoints.

    Raises:
        ConfigError: A dictionary knows no site or does not fit it; the folder holds the result of
            another call; or memory does not suffice.
        DataError: No token of the text counts.
        Stopped: A signal stopped it; the same call goes on.
    """
    if len(window) != 2:
        raise ConfigError(f"Got window={window!r}; give the tokens before and after, as (24, 8).")
    wanted = Wanted(window[0], window[1], n_top, n_quantiles, per_quantile, n_quiet, seed)
    if isinstance(data, (str, os.PathLike)):  # which may be missing: before the model is loaded
        data = as_source(data)
    traced = load_model(model)
    stream = open_stream(data, traced, ctx_len, pack)
    members = members_of(traced, dictionaries, sites, token_filter, stream.special_ids)
    reading = LatentPass(traced, members, stream, n_tokens, batch_size)
    request: Any = to_plain(
        {
            "model": traced.describe(),
            "data": {"source": stream.source.name, "ctx_len": stream.ctx_len, **stream.packing},
            "contents": contents_of_text(stream.source, traced),
            "dictionaries": {name: member.describe() for name, member in members.items()},
            "n_tokens": n_tokens,
            "batch_size": batch_size,
            **wanted._asdict(),
        }
    )
    with claim_run_folder(save_dir, keep=True) as folder:
        if _is_done(folder, request, resume):
            return ContextStore.open(folder)
        work = _Work(folder, request, reading, wanted, checkpoint_every)
        with contextlib.closing(work):
            work.run()
            work.write()
    return ContextStore.open(folder)


class _Work:
    """A pass that can be killed at any moment, and is continued from its last checkpoint."""

    def __init__(
        self, folder: Path, request: dict[str, Any], reading: LatentPass, wanted: Wanted, checkpoint_every: int
    ):
        self.folder, self.request, self.reading, self.every = folder, request, reading, checkpoint_every
        self.wanted = wanted
        sizes = [member.dictionary.dict_size for member in reading.members.values()]
        device, remedy = reading.model.device, "Lower n_top, n_quantiles, per_quantile or window, or give fewer."
        needed = sum(map(wanted.bytes_for, sizes))
        check_memory(needed, device, f"Examples of {sum(sizes)} latents", remedy)
        ctx = reading.stream.ctx_len
        self.collectors = {
            name: Collector(member.dictionary.dict_size, wanted, ctx, member.dictionary.device)
            for name, member in reading.members.items()
        }
        self.step = 0
        n_contexts = self._resume()
        self.spool = Spool(folder / _SPOOL, ctx, n_contexts)

    def run(self) -> None:
        """Reads the text."""
        with StopRequest(True) as stop:
            for batch in self.reading:
                first = self.spool.append(batch.tokens)
                for name, collector in self.collectors.items():
                    collector.add(batch.pairs[name], batch.keeps[name], first)
                self.step += 1
                if stop.signal is not None or self.step % self.every == 0:
                    self._save()
                if stop.signal is not None:
                    raise Stopped(f"Stopped by {stop.signal.name} after {self.reading.n_read} tokens.")
        check_read(self.reading, max(collector.figures.n_tokens for collector in self.collectors.values()))

    def write(self) -> None:
        """Writes the store, and removes what was only for the work."""
        write_store(self.folder, self.request, self.reading, self.collectors, self.spool, self.wanted)
        shutil.rmtree(self.folder / _CHECKPOINTS, ignore_errors=True)
        self.spool.close()
        (self.folder / _SPOOL).unlink(missing_ok=True)
        remove_unfinished(self.folder)

    def close(self) -> None:
        """Closes the files."""
        self.spool.close()

    def _save(self) -> None:
        self.spool.flush()  # before the checkpoint that counts on it
        state = {
            "reading": self.reading.state_dict(),
            "n_contexts": self.spool.n_contexts,
            "collectors": {name: collector.state_dict() for name, collector in self.collectors.items()},
        }
        write_checkpoint(self.folder / _CHECKPOINTS, self.step, state, self.request)
        remove_checkpoints(self.folder / _CHECKPOINTS, keep_last=1)

    def _resume(self) -> int:
        """Continues from the newest checkpoint that is whole; returns its number of contexts."""
        spool = self.folder / _SPOOL
        for checkpoint in reversed(complete_checkpoints(self.folder / _CHECKPOINTS)):
            try:
                state = read_checkpoint(checkpoint.path)
            except CheckpointError as error:
                logger.warning("%s The one before it is tried.", error)
                continue
            size = 4 * 3 * self.reading.stream.ctx_len * state["n_contexts"]
            if not spool.is_file() or spool.stat().st_size < size:
                logger.warning("'%s' lacks contexts that were read; the pass begins anew.", spool)
                break
            self.reading.load_state_dict(state["reading"])
            for name, collector in self.collectors.items():
                collector.load_state_dict(state["collectors"][name])
            self.step = checkpoint.step
            logger.info("Continues after %s, from '%s'.", counted(self.reading.n_read, "token"), checkpoint.path)
            return state["n_contexts"]
        return 0


def _is_done(folder: Path, request: dict[str, Any], resume: str) -> bool:
    """Returns whether a folder holds the result of this call already.

    Raises:
        ConfigError: It holds what another call has written, or anything where nothing is resumed.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    if (folder / INDEX).is_file():
        found.append((folder, read_index(folder)["request"]))
    found += [(c.path, read_manifest(c.path)["facts"]) for c in complete_checkpoints(folder / _CHECKPOINTS)]
    for path, old in found:
        changes = [f"{place}: {_short(was)}, now {_short(now)}" for place, was, now in differences(old, request)]
        if changes:
            raise ConfigError(
                f"'{path}' is of another call ({'; '.join(changes[:6])}). Ask for the same, or give another folder."
            )
        if resume == "never":
            raise ConfigError(f"'{path}' is there already. Give another folder, or resume='auto' to go on with it.")
    return (folder / INDEX).is_file()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
