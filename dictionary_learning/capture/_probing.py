"""What a run of the model on a few tokens shows of its sites: order, size, and whether they matter.

Everything is seen by PyTorch's own hooks, on one text of two tokens or on one example.
"""

import collections
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import flat, hidden_or_none, input_or_none, with_hidden, with_input
from dictionary_learning.capture._inputs import InputBuilder
from dictionary_learning.capture._model_inputs import ModelInputs
from dictionary_learning.capture._skeleton import is_spread
from dictionary_learning.errors import DictionaryLearningError, ModelError, SiteError
from dictionary_learning.sites import Site

_ROUNDING = 0.05
"""Relative difference that may be rounding, even in bfloat16; other tokens differ by over 1."""
_ROW_TOKENS = 8
"""Tokens of each text with which the order of rows is checked: few stay in place by chance."""
_See = Callable[[Tensor | None, int], Tensor | None]
"""Gets the activations at a site and the number of the call; may return others."""


class Probe:
    """A model's sites, as a run shows them: which calls each has, in which order, of which size.

    A call is a site with the number of the call of its module. The only call of a module has none.

    Args:
        builder: builds the inputs of the runs; it knows the model.
    """

    def __init__(self, builder: InputBuilder):
        self.builder, self.module, self.name = builder, builder.module, builder.name
        self._shapes: dict[Site, torch.Size | None] = {}  # of each call, in order of execution
        self._calls: dict[Site, list[Site]] = {}  # of each site
        self._sizes: dict[Site, tuple[int, int]] = {}  # of each call

    def add(self, places: Iterable[Site]) -> None:
        """Finds the calls of places' modules, and the order of execution of all known places.

        Raises:
            SiteError: the forward pass does not run a module; or a hook of the caller's changes its
                output after nnsight has read it. (In a skeleton the hooks are a part of `forward`.)
        """
        bases = dict.fromkeys(place._replace(call=None) for place in places)
        new = [base for base in bases if base not in self._calls]
        if not new:
            return
        sites = [*self._calls, *new]
        shapes = self.shapes(sites)
        n_calls = collections.Counter(call._replace(call=None) for call in shapes)
        for site in new:
            if not n_calls[site]:
                raise SiteError(
                    f"Site '{site}' is in {self.name}, but its forward pass does not run that module. Choose one that "
                    "runs."
                )
            hooked = self.module.get_submodule(site.path)._forward_hooks
            if site.side == "out" and hooked and is_spread(self.module):
                raise SiteError(
                    f"Site '{site}' is in a model that accelerate has spread over devices, and its module has a "
                    "forward hook, which changes the output after it is read. Remove the hook, or name the ':in' of "
                    "the next module."
                )
        self._shapes = {c if n_calls[s := c._replace(call=None)] > 1 else s: shape for c, shape in shapes.items()}
        self._calls = {site: [] for site in sites}
        for call in self._shapes:
            self._calls[call._replace(call=None)].append(call)

    def shapes(self, sites: Iterable[Site]) -> dict[Site, torch.Size | None]:
        """Returns the shape of each site's activations at each call, in order of execution.

        Every call has its number here; the shape is None if there is no tensor.
        """
        shapes: dict[Site, torch.Size | None] = {}

        def record(site: Site) -> _See:
            return lambda x, call: shapes.update({site._replace(call=call): None if x is None else x.shape})

        inputs = self.builder.probe()  # with values, which are checked
        with hooked(self.module, {site: record(site) for site in sites}), _without_values(self.module):
            self.run(inputs)
        return shapes

    def in_order(self, calls: Collection[Site]) -> list[Site]:
        """Returns calls in order of execution."""
        return [call for call in self._shapes if call in calls]

    def calls(self, place: Site) -> list[Site]:
        """Returns the calls of a place's module that a site means, with or without a call's number.

        Raises:
            SiteError: the forward pass runs the module fewer times.
        """
        calls = self._calls[place._replace(call=None)]
        if place.call is None:
            return calls
        if place.call >= len(calls):
            raise SiteError(
                f"Site '{place}' is in {self.name}, but its module runs {len(calls)} times. Name '@0' to "
                f"'@{len(calls) - 1}'."
            )
        return [calls[place.call]]

    def single_call(self, place: Site) -> Site:
        """Returns the call of a place's module that is read.

        Raises:
            SiteError: there are several, and the site does not name one.
        """
        calls = self.calls(place)
        if len(calls) > 1:
            raise SiteError(
                f"Site '{place}' has {len(calls)} values in a forward pass of {self.name}, which runs that module as "
                f"often. Name the call to read: '{calls[0]}' is the first, '{calls[-1]}' the last."
            )
        return calls[0]

    def size(self, place: Site) -> tuple[int, int]:
        """Returns the positions of one example, and the width, at a place with one call.

        Raises:
            SiteError: the module has no activations for each token, or for each example.
        """
        call = self.single_call(place)
        if call not in self._sizes:
            inputs, shape = self.builder.probe(), self._shapes[call]
            check = self._check_example if inputs.ctx_len is None else self._check_text
            x = torch.empty(check(call, shape, inputs), device="meta")
            _, positions, width = flat(x, inputs.channels, inputs.ctx_len).shape
            self._sizes[call] = positions, width
        return self._sizes[call]

    @torch.no_grad()
    def unread(self, sites: Sequence[Site]) -> list[Site]:
        """Returns the sites at which other activations change no output; none without weights."""
        if self.builder.is_elsewhere or not sites:
            return []

        def other(x: Tensor | None, call: int) -> Tensor | None:
            if x is None:
                return None
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device, x.dtype)
            return x + noise * x.abs().amax().clamp_min(1)

        inputs = self.builder.probe()
        clean = hidden_or_none(self.run(inputs))
        found: list[Site] = []
        for site in sites:
            with hooked(self.module, {site: other}):
                changed = hidden_or_none(self.run(inputs))
            if clean is not None and changed is not None and torch.equal(clean, changed):
                found.append(site)
        return found

    @torch.no_grad()
    def run(self, inputs: ModelInputs) -> Any:
        """Returns the model's output.

        Raises:
            ModelError: its forward pass fails.
        """
        try:
            return self.module(*inputs.args, **inputs.kwargs)
        except (DictionaryLearningError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            tried = f"a text of {inputs.ctx_len} tokens" if inputs.ctx_len else "the example"
            raise ModelError(
                f"{type(self.module).__name__} cannot be run on {tried} ({type(error).__name__}: {error}), as is "
                "needed to find its sites. Give inputs that it can be run on: load_model(model, example=...)."
            ) from error

    def _check_text(self, site: Site, shape: torch.Size | None, inputs: ModelInputs) -> torch.Size:
        """Returns the shape of activations if they are those of each token."""
        n = inputs.ctx_len
        lead = None if shape is None else tuple(shape[:-1])
        if shape is not None and (lead == (1, n) or (lead == (n,) and self._rows_are_tokens(site))):
            return shape
        if shape is not None and len(shape) == 4 and shape[0] > 1 and tuple(shape[1:3]) == (1, n):
            return shape[1:]  # several streams, as in Gemma 3n, of which this is the first
        needed = f"one text of {n} tokens; (1, {n}, dim) is needed, or rows (tokens, dim) in the order of the text"
        raise _no_activations(site, shape, needed)

    def _check_example(self, site: Site, shape: torch.Size | None, inputs: ModelInputs) -> torch.Size:
        """Returns the shape of activations if they are those of one example."""
        if shape is None or len(shape) < 2 or shape[0] != 1:
            needed = "(1, dim), (1, positions, dim) or a map with its channels first or last is needed"
            raise _no_activations(site, shape, f"one example; {needed}")
        # only of a square map with another last dimension is it clear that its channels are last
        if len(shape) > 3 and inputs.channels is None and not shape[1] == shape[2] != shape[-1]:
            raise SiteError(
                f"Site '{site}' has {tuple(shape)}, which may be a map with its channels first or last. Name where "
                "they are: load_model(model, channels='first'), or channels='last'."
            )
        return shape

    def _rows_are_tokens(self, site: Site) -> bool:
        """Returns whether a site has a row for each token, in the order of the texts.

        An expert sees some of the tokens, and what runs inside several experts may see them sorted
        by expert. So two texts are run together and each alone: every row must come again in its
        place.
        """
        if any(p.is_meta for p in self.module.parameters()):
            return True  # there are no values to compare
        found: list[Tensor] = []

        def keep(x: Tensor | None, call: int) -> None:
            if x is not None and call == (site.call or 0):
                found.append(x.detach().float().clone())

        both = self.builder.probe(_ROW_TOKENS, n_texts=2)
        texts = [both, *(both.map(lambda x, n=n: x[n : n + 1]) for n in range(2))]
        for inputs in texts:
            with hooked(self.module, {site: keep}):
                self.run(inputs)
        together, alone = found[0], torch.cat(found[1:])
        if len(found) != 3 or together.shape != alone.shape or len(together) != 2 * _ROW_TOKENS:
            return False
        # on average: another batch size may round differently, and send a token to another expert
        return bool((together - alone).abs().mean() <= _ROUNDING * alone.abs().mean())


@contextmanager
def hooked(module: nn.Module, see: Mapping[Site, _See]) -> Iterator[None]:
    """Calls functions with the activations at sites, whenever a module runs."""
    with ExitStack() as handles:
        for site, look in see.items():
            handles.enter_context(_hook(module.get_submodule(site.path), site, look))
        yield


def _hook(part: nn.Module, site: Site, see: _See) -> Any:
    calls = itertools.count()

    def before(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = see(input_or_none(part, args, kwargs, site.index), next(calls))
        return None if new is None else with_input(part, args, kwargs, new, site.index)

    def after(part: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        new = see(hidden_or_none(output, site.index), next(calls))
        return None if new is None else with_hidden(output, new, site.index)

    if site.side == "in":
        return part.register_forward_pre_hook(before, with_kwargs=True)
    return part.register_forward_hook(after)


def _no_activations(site: Site, shape: torch.Size | None, needed: str) -> SiteError:
    got = "no tensor" if shape is None else str(tuple(shape))
    return SiteError(
        f"Site '{site}' has {got} for {needed}. Choose another module, or another position of its tuple, as ':out[1]'."
    )


def _without_values(module: nn.Module) -> AbstractContextManager[Any]:
    """Lets a model run whose weights are not here: its tensors have shapes, and no values."""
    if all(p.device.type != "meta" for p in module.parameters()) or hasattr(module, "hf_device_map"):
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(assume_static_by_default=True))
