"""A model whose activations can be read and replaced at any `Site`.

What is traced is a skeleton of the caller's model, a second tree of modules that shares every tensor with the first: nnsight's
controllers, evaluation mode and frozen parameters are the skeleton's. (A model that accelerate has spread over devices is the
exception: its hooks are bound to its modules, and it is traced itself.)

In which order the modules run, and how wide each site is, is found by one forward pass over two tokens, or over one example,
with ordinary hooks.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dictionary_learning.capture.feeding import PROBE_TOKENS, Call, Feeder
from dictionary_learning.capture.heads import head_shape, heads_site
from dictionary_learning.capture.hookpoints import EMBEDDING, choose_layers, embedding_paths, layer_paths
from dictionary_learning.capture.probing import changes_output, checked_width, shapes_of
from dictionary_learning.capture.remote import RemoteTracer
from dictionary_learning.capture.tracing import Edit, Tracer
from dictionary_learning.errors import SiteError
from dictionary_learning.module_io import Channels, device_of, flat, skeleton
from dictionary_learning.sites import Side, Sides, Site, expand

logger = logging.getLogger(__name__)

_HEADS_TOKENS = 4
"""Enough for a token to attend to another, whatever a model does with the first and the last."""


class TracedModel:
    """A model whose activations can be read and replaced at any site.

    Args:
        module: the model; it is not changed.
        tokenizer: its tokenizer, or None where no text will be fed.
        name: the name kept with what is trained on it; by default the one that it was loaded under.
        revision: the revision that it was loaded at.
        example: some inputs of a model that takes no token ids, as `{"pixel_values": images}`: the arguments to call it with, by
            position (a tuple), by name (a mapping), or alone. Without one, the first batch that is captured takes its place.
        channels: where activations of four dimensions have their channels: "last" (batch, height, width, dim), or "first" (batch,
            dim, height, width), as in convolutional nets; where the shape leaves it open, it must be said.
        tracer: what traces the model, if it is not traced here.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        revision: str | None = None,
        example: Any = None,
        channels: Channels | None = None,
        tracer: Tracer | RemoteTracer | None = None,
    ):
        self.tokenizer = tokenizer
        self.name = name or getattr(module, "name_or_path", "") or type(module).__name__
        self.revision = revision or getattr(getattr(module, "config", None), "_commit_hash", None)
        self.module = skeleton(module) if tracer is None else module
        self.channels: Channels | None = channels
        self._given = module
        self._tracer = tracer or Tracer(self.module)
        self._feeder = Feeder(self.module, self.name, self.device, example, reads_text=tokenizer is not None)
        self._paths = [path for path, _ in module.named_modules()]
        self._order: dict[Site, int] = {}
        self._widths: dict[Site, int] = {}
        self._places: dict[Site, Site] = {}  # where aliases are
        self._tried: set[Site] = set()  # sites that are known to change the prediction, or not to
        self._lock = threading.RLock()  # one module cannot be traced from two threads at once

    @property
    def device(self) -> torch.device:
        """Where inputs are put: the device of the first parameter; the CPU, where the model runs on a server."""
        device = device_of(self.module)
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating-point parameter."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.get_default_dtype())

    def describe(self) -> dict[str, Any]:
        """Returns what is kept in a checkpoint: name, revision and dtype."""
        return {"name": self.name, "revision": self.revision, "dtype": str(self.dtype).removeprefix("torch.")}

    def check_trained_on(self, model: Mapping[str, Any]) -> bool:
        """Tells whether something was trained on this model, by what was kept of its model; logs a warning if not.

        Args:
            model: the `describe()` of the model that it was trained on.
        """
        mine = self.describe()
        other = [key for key in ("name", "revision") if model.get(key) and mine[key] and model[key] != mine[key]]
        if other:
            logger.warning(
                "What was trained on %s is used with %s: its figures will be of another model. Load that one, if this was not meant.",
                _called(model),
                _called(mine),
            )
        return not other

    def sites(self, submodules: Any, side: Sides = "out") -> list[Site]:
        """Returns the sites that are meant: strings and patterns, modules of the model, or a list of these.

        Args:
            submodules: `"model.layers.[0-3].mlp:in"`, `"model.layers.0.self_attn:out[1]"`, `"model.layers.10:heads"`,
                `"embedding"`, a `Site`, a `torch.nn.Module`, an nnsight envoy, or several.
            side: the side of those that name none; `in_and_out` for the input and the output of each, one after the other, whichever
                side they name.

        Raises:
            SiteError: something is not in this model.
        """
        several = isinstance(submodules, Sequence) and not isinstance(submodules, (str, Site))
        default: Side = "out" if side == "in_and_out" else side
        with self._lock:
            wanted = [self._alias(self._site(item, default)) for item in (submodules if several else [submodules])]
            found = [self._resolved(s) for s in expand(wanted, self._paths, model=type(self._given).__name__)]
        if side == "in_and_out":
            found = [Site(site.path, each) for site in found for each in ("in", "out")]
        return list(dict.fromkeys(found))

    def layers(self, layers: Sequence[int] | None = None, layer_stride: int = 1, *, side: Sides = "out") -> list[Site]:
        """Returns the sites of the model's layers, in order: by default the residual stream after each.

        Args:
            layers: the numbers of those that are meant, from 0, or from -1 backwards; all if not given.
            layer_stride: takes every n-th, from the first on.
            side: where at each of them (see `sites`).

        Raises:
            SiteError: the model has no list of modules, or not that many.
        """
        return self.sites(choose_layers(layer_paths(self.module, self.name), layers, layer_stride), side)

    def middle_layer(self) -> Site:
        """Returns the output of the middle layer.

        Raises:
            SiteError: the model has no list of modules.
        """
        layers = self.layers()
        return layers[len(layers) // 2]

    @property
    def longest_context(self) -> int | None:
        """The most tokens in a context, where the model's config tells."""
        return self._feeder.longest

    def n_heads(self, site: Site | str) -> int:
        """Returns the number of attention heads at a site whose width is that of all heads together.

        Raises:
            SiteError: the model's config knows of none there, or the width is no multiple of their number.
        """
        resolved = self._resolved(Site.parse(site))
        n_heads, _ = head_shape(self.module, resolved.path, self.name)
        width = self.widths([resolved])[resolved]
        if width % n_heads:
            raise SiteError(
                f"Site '{site}' is {width} wide, which {n_heads} heads cannot share. Name ':heads' of a layer or of its attention."
            )
        return n_heads

    def widths(self, sites: Sequence[Site]) -> dict[Site, int]:
        """Returns the width of each site, found by a forward pass over two tokens or over one example.

        Raises:
            SiteError: a module is not run by the model's forward pass, or does not give (batch, ctx, dim).
            ModelError: the model takes no token ids, and there is no example yet.
        """
        with self._lock:
            resolved = {site: self._resolved(site) for site in sites}
            new = [site for site in resolved.values() if site not in self._widths]
            if new:
                self._probe(new)
            return {site: self._widths[place] for site, place in resolved.items()}

    def positions(self, sites: Sequence[Site]) -> int:
        """Returns how many positions one example has at the sites: tokens of the probe's text, patches of an image.

        Raises:
            SiteError: the sites have different numbers.
        """
        with self._lock:
            resolved = [self._resolved(site) for site in sites]
            shapes = shapes_of(self.module, resolved, self._probe_call())
        found = {
            site: flat(torch.empty(shape, device="meta"), self.channels).shape[1]
            for site, shape in shapes.items()
            if shape is not None
        }
        if len(set(found.values())) != 1:
            listed = ", ".join(f"{site}: {n}" for site, n in found.items())
            raise SiteError(f"The sites have different numbers of positions ({listed}). Read them one at a time.")
        return next(iter(found.values()))

    def capture(
        self,
        inputs: Tensor | Mapping[str, Any] | tuple[Any, ...],
        attention_mask: Bool[Tensor, "batch ctx"] | None,
        sites: Sequence[Site],
    ) -> dict[Site, Float[Tensor, "batch positions dim"]]:
        """Returns the activations at the sites from one forward pass that is stopped after the last of them.

        The tensors are copies: what the model does next cannot change them. No gradients are recorded.

        Args:
            inputs: token ids (batch, ctx), or the arguments to call the model with: by name, by position, or the only one.
            attention_mask: which tokens are no padding; None where all are.
            sites: where to read.

        Raises:
            SiteError: a site is not in the model, or gave something else than it did when it was probed.
        """
        with self._lock, torch.no_grad():
            self._feeder.remember(inputs)
            self.widths(sites)
            ordered = sorted({self._resolved(site) for site in sites}, key=self._order.__getitem__)
            call = self._feeder.call(inputs, attention_mask)
            found = dict(zip(ordered, self._tracer.collect(ordered, call, self.channels), strict=True))
        for site, x in found.items():
            expected = (call.n_examples, call.ctx_len or x.shape[1], self._widths[site])
            if tuple(x.shape) != expected:
                raise SiteError(
                    f"Site '{site}' gave {tuple(x.shape)}; {expected} is needed, as it gave for the first example. Choose a module "
                    "that gives the activations of each token of each example."
                )
        return {site: found[self._resolved(site)] for site in sites}

    def run(
        self,
        inputs: Tensor | Mapping[str, Any] | tuple[Any, ...],
        attention_mask: Bool[Tensor, "batch ctx"] | None,
        edits: Mapping[Site, Edit] | None = None,
    ) -> Float[Tensor, "batch *prediction"]:
        """Returns the logits of a whole forward pass in which each edit may replace the value at its site.

        Gradients flow through the edits unless the caller turns them off; the model's own parameters are frozen. A model without
        logits gives its first output.

        Args:
            inputs: as `capture` takes them.
            attention_mask: which tokens are no padding; None where all are.
            edits: what is done where.

        Raises:
            SiteError: an edit returns another shape than it was given, or changes what it was given and returns nothing; or two are of
                one place.
        """
        with self._lock:
            self._feeder.remember(inputs)
            resolved = {self._resolved(site): edit for site, edit in (edits or {}).items()}
            if len(resolved) < len(edits or {}):
                raise SiteError(
                    f"Got edits at {', '.join(map(str, edits or {}))}, of which two are the same place by different names. Give one for each."
                )
            self.widths(list(resolved))
            self._warn_of_idle(list(resolved))
            ordered = {site: resolved[site] for site in sorted(resolved, key=self._order.__getitem__)}
            return self._tracer.run(ordered, self._feeder.call(inputs, attention_mask), self.channels)

    def _site(self, item: Any, side: Side) -> Site:
        if isinstance(item, (str, Site)):
            return Site.parse(item, side)
        if isinstance(item, nn.Module):
            for tree in (self._given, self.module):
                for path, module in tree.named_modules():
                    if module is item:
                        return Site(path, side)
            raise SiteError(
                f"The module {type(item).__name__} is not a part of {self.name}; give one of its submodules."
            )
        path = getattr(item, "path", None)
        if isinstance(path, str):  # an nnsight envoy: its path starts with the name of its root
            return Site(path.partition(".")[2], side)
        raise SiteError(
            f"Got a {type(item).__name__} as a site; give a string such as 'model.layers.10:out', or a module."
        )

    def _alias(self, site: Site) -> Site:
        if site.path != EMBEDDING or any(path.split(".")[-1] == EMBEDDING for path in self._paths):
            return site
        sites = [Site(path) for path in embedding_paths(self.module, self.name)]
        run = shapes_of(self.module, sites, self._probe_call()) if len(sites) > 1 else sites
        return site._replace(path=next(iter(run or sites)).path)

    def _resolved(self, site: Site) -> Site:
        """Returns where a site is: itself, or what an alias stands for."""
        if site not in self._places:
            place = self._alias(site)
            if place.path not in self._paths:
                expand(place, self._paths, model=type(self._given).__name__)  # says what is there instead
                raise SiteError(
                    f"Site '{site}' is a pattern. Ask for the sites that it names with model.sites('{site}')."
                )
            if place.side == "heads":
                if device_of(self.module).type == "meta":
                    raise SiteError(
                        f"Site '{site}' is found by running the model, which is not here. Find it with a small model of the same kind, "
                        "and name it, as 'model.layers.10.self_attn.o_proj:in'."
                    )
                call = self._probe_call(_HEADS_TOKENS)
                place = heads_site(self.module, place.path, lambda: self.module(*call.args, **call.kwargs), self.name)
            self._places[site] = place
        return self._places[site]

    def _probe_call(self, n_tokens: int = PROBE_TOKENS) -> Call:
        return self._feeder.probe(n_tokens).to(device_of(self.module))

    def _probe(self, sites: Sequence[Site]) -> None:
        """Finds widths and the order of execution of these sites and all known ones."""
        call = self._probe_call()
        sites = list(dict.fromkeys([*self._widths, *sites]))
        shapes = shapes_of(self.module, sites, call)
        widths = {site: checked_width(site, shapes, call, self.channels, self.name) for site in sites}
        self._widths.update(widths)
        self._order = {site: n for n, site in enumerate(shapes)}

    def _warn_of_idle(self, sites: Sequence[Site]) -> None:
        """Warns, once for each, of sites whose activations can be replaced without any change of the prediction."""
        for site in sites:
            if site not in self._tried and device_of(self.module).type != "meta":
                self._tried.add(site)
                if not changes_output(self.module, site, self._probe_call()):
                    logger.warning(
                        "Replacing the activations at '%s' of %s does not change what the model predicts: nothing reads them.",
                        site,
                        self.name,
                    )


def _called(model: Mapping[str, Any]) -> str:
    revision = model.get("revision")
    return f"'{model.get('name')}'" + (f" at revision {revision}" if revision else "")
