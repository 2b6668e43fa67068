"""Language models as the rest of the package sees them; the only module that imports nnsight.

A `TracedModel` reads and writes the activations of any causal language model at any `Site`:

* `capture` runs one forward pass for all sites and stops it after the last of them;
* `run` goes to the logits, and hands each site's value to a function that may replace it.

A model object of the caller's is never changed. What is traced is a skeleton of it, a second tree of modules that
shares every tensor with the first: nnsight's controllers, evaluation mode and frozen parameters are the skeleton's.

nnsight serves values in the order in which the modules run. That order, and the width of each site, is found by one
forward pass over two tokens with ordinary hooks.
"""

import inspect
import logging
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dictionary_learning.errors import ModelError, SiteError
from dictionary_learning.hardware import default_device
from dictionary_learning.module_values import hidden, hidden_or_none, skeleton, with_hidden
from dictionary_learning.pretrained_models import load_pretrained, load_tokenizer
from dictionary_learning.sites import Side, Site, expand

logger = logging.getLogger(__name__)

Edit = Callable[[Tensor], "Tensor | None"]
"""Is given a site's activations (batch, ctx, dim); returns what takes their place, or None to leave them."""


def load_model(
    model: Any,
    *,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    **options: Any,
) -> "TracedModel":
    """Loads a language model by name, or wraps one that is loaded already.

    Args:
        model: a name on the Hugging Face hub, a local folder, a GGUF file, nnsight's `LanguageModel`,
            `TransformersModel` or `NNsight`, a Hugging Face model, or a `TracedModel`, which is returned as it is.
        tokenizer: the tokenizer, or its name; needed with a model object that brings none.
        device: where a model given by name is put; the accelerator if there is one. Objects stay where they are.
        dtype: of a model given by name; bfloat16 where the device is fast at it, else float32.
        revision: branch, tag or commit on the hub.
        options: passed on to `AutoModelForCausalLM.from_pretrained`, as `device_map` or `quantization_config`.

    Raises:
        ModelError: the model or tokenizer is not there, or cannot be used.
    """
    if isinstance(model, TracedModel) or hasattr(model, "capture"):  # as a `ModelSet` has, too
        return model
    if isinstance(model, (str, os.PathLike)):
        name = str(model)
        module = load_pretrained(name, torch.device(device or default_device()), dtype, revision, options)
        if tokenizer is None or isinstance(tokenizer, str):
            tokenizer = load_tokenizer(tokenizer) if tokenizer else load_tokenizer(name, revision)
        # a GGUF file is known by its name, wherever it lies
        known = Path(name).stem if name.endswith(".gguf") else name
        return TracedModel(module, tokenizer, name=known, revision=revision)
    module = model if isinstance(model, nn.Module) else getattr(model, "_module", None)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"Got a {type(model).__name__} as the model; give a name, a folder, a GGUF file, a Hugging Face model, or an "
            "nnsight LanguageModel, TransformersModel or NNsight."
        )
    if not isinstance(model, nn.Module) and getattr(model, "dispatched", True) is False:
        model.dispatch()  # nnsight leaves parameters on `meta` until they are needed
        module = model._module
    if tokenizer is None and not isinstance(model, nn.Module):
        tokenizer = model.__dict__.get("tokenizer")
    if isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer)
    return TracedModel(module, tokenizer)


class TracedModel:
    """A language model whose activations can be read and replaced at any site.

    Args:
        module: the model; it is not changed.
        tokenizer: its tokenizer, or None where only token ids will be fed.
        name: the name kept with what is trained on it; by default the one that it was loaded under.
        revision: the revision that it was loaded at.
    """

    def __init__(
        self, module: nn.Module, tokenizer: Any = None, *, name: str | None = None, revision: str | None = None
    ):
        import nnsight

        self.tokenizer = tokenizer
        self.name = name or getattr(module, "name_or_path", "") or type(module).__name__
        self.revision = revision or getattr(getattr(module, "config", None), "_commit_hash", None)
        self.module = skeleton(module)
        self._given = module
        with warnings.catch_warnings():
            # children that are called `output` and the like are found under the names that nnsight gives them
            warnings.filterwarnings("ignore", message=".*has a submodule named.*")
            self._envoy = nnsight.NNsight(self.module)
        self._paths = [path for path, _ in module.named_modules()]
        self._forward_names = set(inspect.signature(type(self.module).forward).parameters)
        self._order: dict[Site, int] = {}
        self._widths: dict[Site, int] = {}
        self._lock = threading.RLock()  # one module cannot be traced from two threads at once

    @property
    def device(self) -> torch.device:
        """Where token ids are put: the device of the first parameter."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating-point parameter."""
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    def describe(self) -> dict[str, Any]:
        """Returns what is kept in a checkpoint: name, revision and dtype."""
        return {"name": self.name, "revision": self.revision, "dtype": str(self.dtype).removeprefix("torch.")}

    def sites(self, submodules: Any, side: Side = "out") -> list[Site]:
        """Returns the sites that are meant: strings and patterns, modules of the model, or a list of these.

        Args:
            submodules: `"model.layers.[0-3].mlp:in"`, a `Site`, a `torch.nn.Module`, an nnsight envoy, or several.
            side: the side of those that name none.

        Raises:
            SiteError: something is not in this model.
        """
        several = isinstance(submodules, Sequence) and not isinstance(submodules, (str, Site))
        wanted = submodules if several else [submodules]
        return expand([self._site(item, side) for item in wanted], self._paths, model=type(self._given).__name__)

    def middle_layer(self) -> Site:
        """Returns the output of the middle layer: the middle entry of the longest list of modules.

        Raises:
            SiteError: the model has no list of modules.
        """
        lists = [(path, module) for path, module in self.module.named_modules() if isinstance(module, nn.ModuleList)]
        if not lists:
            raise SiteError(f"{self.name} has no list of layers. Name a site of it.")
        path, layers = max(lists, key=lambda entry: len(entry[1]))
        return Site(f"{path}.{len(layers) // 2}")

    def widths(self, sites: Sequence[Site]) -> dict[Site, int]:
        """Returns the width of each site, found by a forward pass over two tokens.

        Raises:
            SiteError: a module is not run by the model's forward pass, or does not give (batch, ctx, dim).
        """
        new = [site for site in sites if site not in self._widths]
        if new:
            self._probe(new)
        return {site: self._widths[site] for site in sites}

    def capture(
        self,
        input_ids: Int[Tensor, "batch ctx"],
        attention_mask: Bool[Tensor, "batch ctx"] | None,
        sites: Sequence[Site],
    ) -> dict[Site, Float[Tensor, "batch ctx dim"]]:
        """Returns the activations at the sites from one forward pass that is stopped after the last of them.

        The tensors are copies: what the model does next cannot change them. No gradients are recorded.
        """
        with self._lock, torch.no_grad():
            self.widths(sites)
            ordered = sorted(sites, key=self._order.__getitem__)
            targets: list[tuple[Any, Side]] = [(self._target(site.path), site.side) for site in ordered]
            values = _collect(self._envoy, targets, self._inputs(input_ids, attention_mask))
        found = dict(zip(ordered, values, strict=True))
        return {site: found[site] for site in sites}

    def run(
        self,
        input_ids: Int[Tensor, "batch ctx"],
        attention_mask: Bool[Tensor, "batch ctx"] | None,
        edits: Mapping[Site, Edit] | None = None,
    ) -> Float[Tensor, "batch ctx vocab"]:
        """Returns the logits of a whole forward pass in which each edit may replace the value at its site.

        Gradients flow through the edits unless the caller turns them off; the model's own parameters are frozen.

        Raises:
            SiteError: an edit returns another shape than it was given.
        """
        edits = edits or {}
        with self._lock:
            self.widths(list(edits))
            ordered = sorted(edits, key=self._order.__getitem__)
            targets = [(site, self._target(site.path), edits[site]) for site in ordered]
            return _run(self._envoy, targets, self._inputs(input_ids, attention_mask))

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": input_ids.to(self.device)}
        if attention_mask is not None and not bool(attention_mask.all()):
            inputs["attention_mask"] = attention_mask.to(self.device, torch.long)
            # a model with learnt positions counts from the first column unless it is told; padding may be on the left
            if "position_ids" in self._forward_names:
                inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        if "use_cache" in self._forward_names:
            inputs["use_cache"] = False
        return inputs

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

    def _target(self, path: str) -> Any:
        envoy = self._envoy
        for part in path.split(".") if path else []:
            # nnsight mounts a child under another name where its own is taken, as `output` in every BERT layer
            renamed = getattr(type(envoy), "OVERLOAD_PREFIX", "E_") + part
            envoy = envoy.__dict__[renamed] if renamed in envoy.__dict__ else getattr(envoy, part)
        return envoy

    @torch.no_grad()
    def _probe(self, sites: Sequence[Site]) -> None:
        """Finds widths and the order of execution of these sites and all known ones."""
        sites = list(dict.fromkeys([*self._widths, *sites]))
        shapes: dict[Site, torch.Size | None] = {}
        handles = []
        for site in sites:
            module = self.module.get_submodule(site.path)
            if site.side == "in":

                def before(module: nn.Module, args: tuple, kwargs: dict, site: Site = site) -> None:
                    first = args[0] if args else next(iter(kwargs.values()), None)
                    shapes.setdefault(site, getattr(hidden_or_none(first), "shape", None))

                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:

                def after(module: nn.Module, args: tuple, output: Any, site: Site = site) -> None:
                    shapes.setdefault(site, getattr(hidden_or_none(output), "shape", None))

                handles.append(module.register_forward_hook(after))
        try:
            self.module(**self._inputs(torch.zeros(1, 2, dtype=torch.long), None))
        finally:
            for handle in handles:
                handle.remove()
        for site in sites:
            shape = shapes.get(site)
            if site not in shapes:
                raise SiteError(
                    f"Site '{site}' is in {self.name}, but its forward pass does not run that module. Choose one that runs."
                )
            if shape is None or len(shape) != 3 or tuple(shape[:2]) != (1, 2):
                got = tuple(shape) if shape is not None else "no tensor"
                raise SiteError(
                    f"Site '{site}' gives {got} for one text of two tokens; (1, 2, dim) is needed. Choose another module."
                )
            self._widths[site] = shape[-1]
        self._order = {site: n for n, site in enumerate(shapes)}


def _collect(envoy: Any, targets: list[tuple[Any, Side]], inputs: dict[str, Any]) -> list[Tensor]:
    """Reads the targets, given in order of execution, and stops the forward pass.

    A function of its own, because a trace keeps the locals of its caller alive until that returns. The exception is
    ours, and emptied afterwards, because the one of `tracer.stop()` keeps the model's activations until the next
    garbage collection.
    """
    from nnsight.intervention.interleaver import EarlyStopException

    done = EarlyStopException()
    values: list[Tensor] = []
    with envoy.trace(**inputs):
        for target, side in targets:
            values.append(hidden(target.output if side == "out" else target.input).clone())
        raise done
    done.__traceback__ = done.__context__ = None
    done.__dict__.clear()
    return values


def _run(envoy: Any, targets: list[tuple[Site, Any, Edit]], inputs: dict[str, Any]) -> Tensor:
    results: dict[str, Tensor] = {}
    with envoy.trace(**inputs):
        for site, target, edit in targets:
            value = target.output if site.side == "out" else target.input
            new = edit(hidden(value))
            if new is not None:
                replaced = with_hidden(value, new, site)
                if site.side == "out":
                    target.output = replaced
                else:
                    target.input = replaced
        output = envoy.output
        results["logits"] = output.logits if hasattr(output, "logits") else hidden(output)
    return results["logits"]
