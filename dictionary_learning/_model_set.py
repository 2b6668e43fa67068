"""Several models that read the same text: for crosscoders that compare them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from dictionary_learning._types import ModelLike, SitesLike, SubmodulesLike
from dictionary_learning.capture import MaskLike
from dictionary_learning.errors import ModelError, SiteError
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Sides, Site, SiteDict, parse_sites

logger = logging.getLogger(__name__)

_SEPARATOR = "/"


class ModelSet:
    """Models with common token ids, whose activations at the same tokens are captured together.

    An `ActivationBuffer` takes it in place of a model. A site names its model:
    `"chat/model.layers.10:out"`; without a name it means the site in each of them, in their order.

    The models may have tokenizers of which one only adds tokens to another, as those of a base
    model and its fine-tuned one; the smaller one is used. A model without a tokenizer shares that
    of the others.

    Args:
        models: the models by name, each as for `load_model`.

    Raises:
        ModelError: there are fewer than two models, or their token ids mean different tokens.
    """

    def __init__(self, **models: ModelLike):
        if len(models) < 2:
            got = f"A set of models got {len(models)}"
            raise ModelError(f"{got}; give at least two by name: ModelSet(base=..., chat=...).")
        self.models: dict[str, TracedModel] = {name: load_model(model) for name, model in models.items()}
        first = next(iter(self.models.values()))
        self.tokenizer = self._common_tokenizer()
        self.device, self.dtype = first.device, first.dtype
        self.known_name = None  # no one name loads several models
        self.name = ", ".join(f"{name}: {model.name}" for name, model in self.models.items())

    def describe(self) -> dict[str, Any]:
        """Returns what a checkpoint stores: the models, each as its own `describe` says."""
        return {
            "name": None,
            "label": self.name,
            "models": {name: model.describe() for name, model in self.models.items()},
        }

    def sites(self, submodules: SubmodulesLike, side: Sides = "out") -> list[Site]:
        """Returns the sites of strings and patterns, with models' names, or raises SiteError."""
        return list(dict.fromkeys(site for sites in self._asked(submodules, side).values() for site in sites))

    def layers(self, layers: Sequence[int] | None = None, layer_stride: int = 1, *, side: Sides = "out") -> list[Site]:
        """Returns the sites of the layers of each model (see `TracedModel.layers`)."""
        found = {name: model.layers(layers, layer_stride, side=side) for name, model in self.models.items()}
        return [_owned(name, site) for name, sites in found.items() for site in sites]

    def n_heads(self, site: Site | str) -> int:
        """Returns the number of attention heads at a site (see `TracedModel.n_heads`)."""
        ((model, inner),) = self._owners(site).values()
        return model.n_heads(inner)

    def widths(self, sites: SitesLike) -> SiteDict[int]:
        """Returns the width of each site."""
        return SiteDict({site: model.widths(inner)[inner] for site, (model, inner) in self._owners(sites).items()})

    def capture(
        self,
        input_ids: Int[Tensor, "batch ctx"],
        attention_mask: MaskLike | None = None,
        sites: SitesLike | None = None,
    ) -> SiteDict[Float[Tensor, "batch ctx dim"]]:
        """Returns the sites' activations, on the first model's device. Each model runs once."""
        owners = self._owners(self.layers() if sites is None else sites)
        found: dict[Site, Tensor] = {}
        for model in self.models.values():
            # one forward pass for all sites of a model
            mine = {site: inner for site, (owner, inner) in owners.items() if owner is model}
            if mine:
                values = model.capture(input_ids, attention_mask, list(mine.values()))
                found.update({site: values[inner].to(self.device) for site, inner in mine.items()})
        return SiteDict({site: found[site] for site in owners})

    def run(self, inputs: Tensor, attention_mask: Any = None, edits: Mapping[Any, Any] | None = None) -> Tensor:
        """Raises ModelError: several models have no common prediction."""
        raise ModelError(
            "A set of models has no common prediction to measure losses on. Evaluate with n_fidelity_tokens=0, or one "
            "model at a time."
        )

    def _common_tokenizer(self) -> Any:
        """Returns the tokenizer whose tokens all models know, or None if no model has one."""
        named = {name: m.tokenizer for name, m in self.models.items() if hasattr(m.tokenizer, "get_vocab")}
        # a vocabulary maps tokens to ids: one that is part of another gives the same ids to the
        # same tokens
        vocabularies = {name: tokenizer.get_vocab() for name, tokenizer in named.items()}
        if not vocabularies:
            return next(iter(self.models.values())).tokenizer
        smallest = min(vocabularies, key=lambda name: len(vocabularies[name]))
        for name, vocabulary in vocabularies.items():
            if not vocabularies[smallest].items() <= vocabulary.items():
                raise ModelError(
                    f"'{name}' and '{smallest}' have different vocabularies, so their activations would be of "
                    "different tokens. One may add tokens to the other, and nothing else. Choose models of one family."
                )
        if len({len(vocabulary) for vocabulary in vocabularies.values()}) > 1:
            logger.info("The tokenizer of '%s' is used for all models; the others only add tokens to it.", smallest)
        return named[smallest]

    def _asked(self, submodules: SubmodulesLike, side: Sides = "out") -> dict[Site, list[Site]]:
        """Returns, by the site asked for, the sites that it means, with their models' names."""
        if isinstance(submodules, nn.Module) or not isinstance(submodules, (str, Site, Sequence)):
            got = f"Got a {type(submodules).__name__} as a site of several models"
            raise SiteError(f"{got}; name it, as 'base/model.layers.10'.")
        meant: dict[Site, list[Site]] = {}
        named = cast(SitesLike, submodules)  # a module has no name that says its model
        for site in parse_sites(named, "out" if side == "in_and_out" else side):
            owner, separator, path = site.path.partition(_SEPARATOR)
            if separator and owner not in self.models:
                raise SiteError(f"Site '{site}' names the model '{owner}'; the set has {', '.join(self.models)}.")
            inner = site._replace(path=path) if separator else site
            names = [owner] if separator else list(self.models)
            meant[site] = [_owned(name, match) for name in names for match in self.models[name].sites(inner, side)]
        return meant

    def _owners(self, sites: SitesLike) -> dict[Site, tuple[TracedModel, Site]]:
        """Returns the model of each site, and the site in that model."""
        owners: dict[Site, tuple[TracedModel, Site]] = {}
        for site in parse_sites(sites):
            name, separator, path = site.path.partition(_SEPARATOR)
            # what is named in full stays as it is asked for; the rest is looked up
            for full in [site] if separator and name in self.models else self._asked(site)[site]:
                owner, _, path = full.path.partition(_SEPARATOR)
                owners[full] = (self.models[owner], full._replace(path=path))
        return owners


def _owned(name: str, site: Site) -> Site:
    return site._replace(path=f"{name}{_SEPARATOR}{site.path}")
