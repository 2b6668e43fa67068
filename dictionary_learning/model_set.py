"""Several models that read the same text: for crosscoders that compare them."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.errors import ModelError, SiteError
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Sides, Site

_SEPARATOR = "/"


class ModelSet:
    """Models with one vocabulary, whose activations at the same tokens are captured together.

    It takes a model's place in an `ActivationBuffer`. A site says whose it is: `"chat/model.layers.10:out"`; one that names no
    model is meant in each of them, in the order in which the models were given.

    Args:
        models: the models by name, each as `load_model` takes it.

    Raises:
        ModelError: there are fewer than two models, or their vocabularies differ.
    """

    def __init__(self, **models: Any):
        if len(models) < 2:
            raise ModelError(
                f"A set of models got {len(models)}; give at least two by name: ModelSet(base=..., chat=...)."
            )
        self.models: dict[str, TracedModel] = {name: load_model(model) for name, model in models.items()}
        first_name, first = next(iter(self.models.items()))
        for name, model in self.models.items():
            if model.tokenizer.get_vocab() != first.tokenizer.get_vocab():
                raise ModelError(
                    f"'{name}' and '{first_name}' have different vocabularies, so their activations are not of the same tokens. "
                    "Choose models of one family."
                )
        self.tokenizer = first.tokenizer
        self.device, self.dtype = first.device, first.dtype
        self.name = ", ".join(f"{name}: {model.name}" for name, model in self.models.items())

    def describe(self) -> dict[str, Any]:
        """Returns what is kept in a checkpoint: the models, each with name, revision and dtype."""
        return {"name": self.name, "models": {name: model.describe() for name, model in self.models.items()}}

    def sites(self, submodules: Any, side: Sides = "out") -> list[Site]:
        """Returns the sites that are meant, each with its model's name.

        Raises:
            SiteError: a site names no model of the set, or is not in it.
        """
        wanted: list[Any] = [submodules] if isinstance(submodules, (str, Site)) else list(submodules)
        found: dict[Site, None] = {}
        for item in wanted:
            site = Site.parse(item, "out" if side == "in_and_out" else side)
            owner, separator, path = site.path.partition(_SEPARATOR)
            if separator and owner not in self.models:
                raise SiteError(f"Site '{site}' names the model '{owner}'; the set has {', '.join(self.models)}.")
            for name in [owner] if separator else self.models:
                inner = site._replace(path=path) if separator else site
                found.update((self._owned(name, match), None) for match in self.models[name].sites(inner, side))
        return list(found)

    def layers(self, layers: Sequence[int] | None = None, layer_stride: int = 1, *, side: Sides = "out") -> list[Site]:
        """Returns the sites of the layers of each model (see `TracedModel.layers`)."""
        return [
            self._owned(name, site)
            for name, model in self.models.items()
            for site in model.layers(layers, layer_stride, side=side)
        ]

    def n_heads(self, site: Site | str) -> int:
        """Returns the number of attention heads at a site (see `TracedModel.n_heads`)."""
        site = Site.parse(site)
        model, inner = self._owners([site])[site]
        return model.n_heads(inner)

    def widths(self, sites: Sequence[Site]) -> dict[Site, int]:
        """Returns the width of each site."""
        return {site: model.widths([inner])[inner] for site, (model, inner) in self._owners(sites).items()}

    def capture(
        self,
        input_ids: Int[Tensor, "batch ctx"],
        attention_mask: Bool[Tensor, "batch ctx"] | None,
        sites: Sequence[Site],
    ) -> dict[Site, Float[Tensor, "batch ctx dim"]]:
        """Returns the activations at the sites, on the first model's device; each model reads the tokens once."""
        owners = self._owners(sites)
        found: dict[Site, Tensor] = {}
        for model in self.models.values():
            mine = {site: inner for site, (owner, inner) in owners.items() if owner is model}
            if mine:
                values = model.capture(input_ids, attention_mask, list(mine.values()))
                found.update({site: values[inner].to(self.device) for site, inner in mine.items()})
        return {site: found[site] for site in sites}

    def run(self, input_ids: Tensor, attention_mask: Tensor | None, edits: Mapping[Site, Any] | None = None) -> Tensor:
        """Is refused: several models have no common prediction.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "A set of models has no common prediction to measure losses on. Evaluate with n_fidelity_tokens=0, or one model at a time."
        )

    def _owners(self, sites: Sequence[Site]) -> dict[Site, tuple[TracedModel, Site]]:
        owners = {}
        for site in sites:
            name, _, path = site.path.partition(_SEPARATOR)
            owners[site] = (self.models[name], site._replace(path=path))
        return owners

    def _owned(self, name: str, site: Site) -> Site:
        return site._replace(path=f"{name}{_SEPARATOR}{site.path}")
