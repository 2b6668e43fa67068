"""A model whose activations can be read and replaced at any `Site`.

What is traced is a skeleton of the caller's model (`_skeleton.py`), which is built again when the
model has changed. The order, number and width of the sites is found by a probe (`_probing.py`).
"""

import functools
import itertools
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning._border import as_tokenizer, checked
from dictionary_learning._module_io import Channels, device_of
from dictionary_learning._types import SitesLike, SubmodulesLike
from dictionary_learning.capture._addresses import Addresses
from dictionary_learning.capture._halves import Halves
from dictionary_learning.capture._hookpoints import head_shape, layer_paths, parts_without
from dictionary_learning.capture._inputs import InputBuilder, InputsLike, MaskLike
from dictionary_learning.capture._ordinary import sparing_special
from dictionary_learning.capture._probing import Probe
from dictionary_learning.capture._remote import RemoteTracer
from dictionary_learning.capture._skeleton import Snapshot, skeleton
from dictionary_learning.capture._tracing import Edit, Tracer
from dictionary_learning.errors import ModelError, SiteError
from dictionary_learning.sites import Side, Sides, Site, SiteDict

logger = logging.getLogger(__name__)


class TracedModel:
    """A model whose activations can be read and replaced at any site.

    Args:
        module: the model; it is not changed. What the caller changes in it later is followed.
        tokenizer: its tokenizer, or a processor that holds one; None if no text will be read.
        name: the name stored with what is trained on it; by default that of the hub or the folder
            that the model is from. A model that is from neither has no name.
        example: inputs of a model that takes no token ids: a tuple of positional arguments, a
            mapping of keyword arguments, as `{"pixel_values": images}`, or the only one. By default
            the first batch that is captured.
        channels: where maps of four dimensions have their channels: "last" (batch, height, width,
            dim) or "first" (batch, dim, height, width), as in convolutional nets. Required where
            the shape leaves it open.
        tracer: what traces the model, if it is not traced here.
    """

    @checked()
    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        revision: str | None = None,
        example: Any = None,
        channels: Channels | None = None,
        tracer: RemoteTracer | None = None,
    ):
        module = getattr(module, "_orig_mod", module)  # of torch.compile, whose prefix no other name would match
        self.tokenizer = as_tokenizer(tokenizer)
        self.known_name: str | None = name or getattr(module, "name_or_path", None) or None
        self.revision = revision or getattr(getattr(module, "config", None), "_commit_hash", None)
        self.channels: Channels | None = channels
        self._original = module
        self._remote = tracer
        self._warned: set[str] = set()
        self._tried: set[Site] = set()  # sites that are known to change the prediction, or not to
        self._is_busy = False
        self._is_torn = False  # whether an interrupt may have left the tracer in the middle of a run
        self._lock, self._process = threading.RLock(), os.getpid()  # one module is traced by one thread at once
        self._prepare(getattr(example, "inputs", example))

    def _prepare(self, example: InputsLike | None) -> None:
        """Builds the skeleton and forgets what is known of an earlier one."""
        self.module = self._original if self._remote else skeleton(self._original)
        tracer = self._remote or Tracer(self.module)
        self._tracer: Tracer | RemoteTracer = tracer
        self._collector = Halves(self._original, tracer) if isinstance(tracer, Tracer) else tracer
        self._snapshot = None if self._remote else Snapshot(self._original)
        self._builder = InputBuilder(
            self.module, self.name, example, reads_text=self.tokenizer is not None, channels=self.channels
        )
        self._probe = Probe(self._builder)
        self._addresses = Addresses(self._original, self.module, self.name, self._probe)

    @contextmanager
    def _exclusive(self, inputs: InputsLike | None = None) -> Iterator[None]:
        """Holds the model for one thread, and follows what has changed in it.

        Inputs become the example if there is none, and are forgotten if they lead to an error.
        """
        if self._process != os.getpid():  # a fork copies the lock, which another thread may have held
            self._lock, self._process = threading.RLock(), os.getpid()
            self._is_busy, self._is_torn = False, True
        with self._lock:
            if self._is_busy:
                raise ModelError(
                    f"An edit used {self.name} while it ran. Capture what the edit needs before the run, or use "
                    "another model."
                )
            if self._is_torn:
                self._prepare(self._builder.example)
                self._is_torn = False
            if self._snapshot and not self._snapshot.is_current():
                logger.info(
                    "%s has changed since it was last used; what is captured now is of the changed model.", self.name
                )
                self._prepare(self._builder.example)
            example, self._is_busy = self._builder.example, True
            try:
                if inputs is not None:
                    self._builder.remember(inputs)
                yield
            except BaseException as error:
                self._builder.example, self._is_torn = example, not isinstance(error, Exception)
                raise
            finally:
                self._is_busy = False

    def __reduce__(self) -> Any:
        own = {"name": self.known_name, "revision": self.revision, "channels": self.channels, "tracer": self._remote}
        return functools.partial(TracedModel, example=self._builder.example, **own), (self._original, self.tokenizer)

    @property
    def name(self) -> str:
        """What people call the model: its name, or its class where it has none."""
        return self.known_name or type(self._original).__name__

    @property
    def device(self) -> torch.device:
        """The device of inputs: the first parameter's; the CPU if the model runs on a server."""
        device = device_of(self._original)  # which the caller may have moved
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating-point parameter."""
        return next((p.dtype for p in self._original.parameters() if p.is_floating_point()), torch.get_default_dtype())

    def describe(self) -> dict[str, Any]:
        """Returns what a checkpoint stores of the model: name, revision and dtype.

        A model without a name has None, and its class as "label".
        """
        label = {} if self.known_name else {"label": self.name}
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": self.known_name, **label, "revision": self.revision, "dtype": dtype}

    def check_trained_on(self, model: Mapping[str, Any]) -> bool:
        """Returns whether another model's `describe()` may be this one's; logs a warning if not."""
        mine = self.describe()
        both = [key for key in ("name", "label", "revision") if model.get(key) and mine.get(key)]
        differs = [model[key] != mine[key] for key in both]
        if any(differs):
            revisions = [f" at revision {m['revision']}" if m.get("revision") else "" for m in (model, mine)]
            logger.warning(
                "What was trained on '%s'%s is used with '%s'%s: its figures will be of another model. Load that one, "
                "if this was not meant.",
                *(model.get("name") or model.get("label"), revisions[0], self.name, revisions[1]),
            )
        return not any(differs)

    def warn_once(self, message: str, *values: object) -> None:
        """Logs a warning about this model, if it was not logged before."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message, *values)

    @checked()
    def sites(self, submodules: SubmodulesLike, side: Sides = "out") -> list[Site]:
        """Returns sites by strings and patterns, modules of the model, or a list of these.

        Args:
            submodules: `"model.layers.[0-3].mlp:in"`, `"model.layers.0.self_attn:out[1]"`,
                `"model.layers.10:heads"`, `"embedding"`, a hook of TransformerLens
                (`"blocks.10.hook_resid_post"`), a `Site`, a `torch.nn.Module`, an nnsight
                envoy, or several.
            side: the side of those that name none; `in_and_out` for the input and the output of
                each, one after the other, whichever side they name.

        Raises:
            SiteError: something is not in this model.
        """
        several = isinstance(submodules, Sequence) and not isinstance(submodules, (str, Site))
        items: Any = submodules if several else [submodules]
        default: Side = "out" if side == "in_and_out" else side
        with self._exclusive():
            found = self._addresses.named(items, default)
        if side == "in_and_out":
            found = [Site(site.path, each, call=site.call) for site in found for each in ("in", "out")]
        return list(dict.fromkeys(found))

    @checked()
    def layers(self, layers: Sequence[int] | None = None, layer_stride: int = 1, *, side: Sides = "out") -> list[Site]:
        """Returns the sites of the layers, in order: by default the residual stream after each.

        Args:
            layers: their numbers, from 0, or from -1 backwards; all by default.
            layer_stride: chooses every n-th, beginning with the first.
            side: the side of each (see `sites`).

        Raises:
            SiteError: the model has no list of modules, or fewer.
        """
        return self.sites(layer_paths(self._original, self.name, layers, layer_stride), side)

    @property
    def longest_context(self) -> int | None:
        """The most tokens in a context, if the model's config tells."""
        return self._builder.longest_context

    @checked()
    def n_heads(self, site: Site | str) -> int:
        """Returns the number of attention heads at a site that is as wide as all heads together.

        Raises:
            SiteError: the model's config has none there, or the width is no multiple of their
                number.
        """
        with self._exclusive():
            (place,) = self._addresses.places(site).values()
            n_heads, _ = head_shape(self.module, place.path, self.name)
            _, width = self._probe.size(place)
        if width % n_heads:
            raise SiteError(
                f"Site '{site}' is {width} wide, which {n_heads} heads cannot share. Name ':heads' of a layer or of "
                "its attention."
            )
        return n_heads

    @checked()
    def widths(self, sites: SitesLike) -> SiteDict[int]:
        """Returns the width of each site, found by a forward pass over two tokens or one example.

        Raises:
            SiteError: the forward pass runs a module not at all, or several times and the site does
                not name the call, or the module has no activations (batch, ctx, dim).
            ModelError: the model takes no token ids, and there is no example yet.
        """
        with self._exclusive():
            return SiteDict({site: self._probe.size(place)[1] for site, place in self._addresses.places(sites).items()})

    @checked()
    def in_order(self, sites: SitesLike) -> list[Site]:
        """Returns sites in the order in which a forward pass reaches them.

        Raises:
            SiteError: the forward pass runs a module not at all, or several times and the site does
                not name the call.
        """
        with self._exclusive():
            calls = {self._probe.single_call(place): site for site, place in self._addresses.places(sites).items()}
            return [calls[call] for call in self._probe.in_order(calls)]

    @checked()
    def positions(self, sites: SitesLike) -> int:
        """Returns the positions of one example at the sites: image patches, tokens of the probe.

        Raises:
            SiteError: the sites have different numbers, or no activations (see `widths`).
        """
        with self._exclusive():
            found = {site: self._probe.size(place)[0] for site, place in self._addresses.places(sites).items()}
        if len(set(found.values())) != 1:
            listed = ", ".join(f"{site}: {n}" for site, n in found.items())
            raise SiteError(f"The sites have different numbers of positions ({listed}). Read them one at a time.")
        return next(iter(found.values()))

    @checked()
    def capture(
        self, inputs: InputsLike, attention_mask: MaskLike | None = None, sites: SitesLike | None = None
    ) -> SiteDict[Float[Tensor, "batch positions dim"]]:
        """Returns the activations at the sites from one forward pass, which stops after the last.

        The tensors are copies: the model cannot change them later. No gradients are recorded.

        Args:
            inputs: token ids (batch, ctx), or a model's keyword arguments, its positional ones, or
                the only one.
            attention_mask: True or 1 for tokens, False or 0 for padding; None if nothing is
                padding.
            sites: where to read; by default the output of every layer.

        Raises:
            SiteError: a site is not in the model, its module runs several times and it does not
                name the call, or its activations have another shape than when the model was probed.
            ModelError: the inputs do not fit the model.
        """
        with self._exclusive(inputs), torch.no_grad():
            made = self._builder.build(inputs, attention_mask)
            places = self._addresses.places(layer_paths(self.module, self.name) if sites is None else sites)
            calls = {site: self._probe.single_call(place) for site, place in places.items()}
            widths = {call: self._probe.size(call)[1] for call in calls.values()}
            ordered = self._probe.in_order(widths)
            found = dict(zip(ordered, self._collector.collect(ordered, made), strict=True))
        for site, x in found.items():
            made.check(site, x)
            if x.shape[-1] != widths[site]:
                raise SiteError(
                    f"Site '{site}' gave {tuple(x.shape)}; it was {widths[site]} wide when the model was probed."
                )
        return SiteDict({site: found[call] for site, call in calls.items()})

    @checked(autocast=True)
    def run(
        self,
        inputs: InputsLike,
        attention_mask: MaskLike | Mapping[Any, Edit] | None = None,
        edits: Mapping[Any, Edit] | None = None,
        *,
        special_tokens: bool = False,
        activation_checkpointing: bool = False,
    ) -> Float[Tensor, "batch *prediction"]:
        """Returns the logits of a whole forward pass in which each edit may replace activations.

        BOS, EOS and padding stay as they are, whatever an edit returns for them. The model's own
        parameters are frozen. Gradients flow through the edits: logits have them if an edit uses
        something that does, such as a dictionary's weights; under `torch.no_grad()` they have none.
        A model without logits returns its first output. Under `torch.autocast` it runs as the model
        itself would, which end-to-end training asks for; `capture` does not.

        Args:
            inputs: as for `capture`.
            attention_mask: as for `capture`. The edits may come second if there is none.
            edits: functions by site, pattern or string. Where a module runs several times, a site
                without `@` edits every call.
            special_tokens: whether BOS, EOS and padding ids change too.
            activation_checkpointing: whether layers keep only their inputs for gradients, and run
                again while these are computed; edits do not.

        Raises:
            SiteError: an edit returns another shape, or changes its argument and returns nothing;
                or two edits are of one place.
            ModelError: the inputs do not fit the model, or an edit uses this model; or the layers
                of this one cannot run again.
        """
        if isinstance(attention_mask, Mapping):
            if edits is not None:
                raise ModelError("Got edits twice. Write run(inputs, attention_mask, edits) or run(inputs, edits).")
            attention_mask, edits = None, attention_mask
        with self._exclusive(inputs):
            made = self._builder.build(inputs, attention_mask)
            of_calls = self._edits_of_calls(edits or {})
            ordered = self._probe.in_order(of_calls)
            self._warn_if_unread(ordered)
            if not special_tokens:
                of_calls = sparing_special(of_calls, made, self)
            pairs = [(call, of_calls[call]) for call in ordered]
            if not activation_checkpointing:
                return self._tracer.run(pairs, made)
            again = self._layers_to_run_again(ordered)
            assert isinstance(self._tracer, Tracer), "a server was refused"
            return self._tracer.run(pairs, made, again)

    def _layers_to_run_again(self, edited: Sequence[Site]) -> list[str]:
        if self._remote is not None:
            raise ModelError(f"{self.name} runs on a server, which has no activation_checkpointing. Leave it out.")
        try:
            layers = layer_paths(self._original, self.name)
        except SiteError as error:
            raise ModelError(
                f"{self.name} has no list of layers that could run again. Leave activation_checkpointing out."
            ) from error
        return parts_without(self.module, layers, edited)

    @checked()
    def check_is_read(self, sites: SitesLike) -> None:
        """Logs a warning for each site whose activations do not change what the model predicts.

        Raises:
            SiteError: a site is not in the model.
            ModelError: the model takes no token ids, and there is no example yet.
        """
        with self._exclusive():
            self._warn_if_unread(list(self._addresses.places(sites).values()))

    def _warn_if_unread(self, places: Sequence[Site]) -> None:
        sites = dict.fromkeys(place._replace(call=None) for place in places)
        untried = [site for site in sites if site not in self._tried]
        for site in self._probe.unread(untried):
            logger.warning(
                "Replacing the activations at '%s' of %s does not change what the model predicts: nothing reads them.",
                *(site, self.name),
            )
        self._tried.update(untried)

    def _edits_of_calls(self, edits: Mapping[Any, Edit]) -> dict[Site, Edit]:
        """Returns the edit of each call of a module."""
        found: dict[Site, Edit] = {}
        self._addresses.places(list(edits))  # one probe for all
        for key, edit in edits.items():
            if not callable(edit):
                raise SiteError(
                    f"Got a {type(edit).__name__} as the edit at '{key}'; give a function of the activations."
                )
            for call in itertools.chain.from_iterable(map(self._probe.calls, self._addresses.places(key).values())):
                if call in found:
                    raise SiteError(
                        f"Got edits at {', '.join(map(str, edits))}, of which two are the same place by different "
                        "names. Give one for each."
                    )
                self._probe.size(call)  # checks the shape
                found[call] = edit
        return found
