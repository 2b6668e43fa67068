"""Places in a model, by what users call them: names, patterns, aliases, modules."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from dictionary_learning._types import SitesLike
from dictionary_learning.capture._hook_names import is_hook, site_of_hook
from dictionary_learning.capture._hookpoints import EMBEDDING, embedding_path, heads_site
from dictionary_learning.capture._probing import Probe
from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Side, Site, expand, parse_sites


class Addresses:
    """Finds the places of one model.

    Args:
        original: The caller's model.
        module: What is traced of it; modules of both may be given.
        name: The model's, for errors.
        probe: Finds the embedding, and where heads are.
    """

    def __init__(self, original: nn.Module, module: nn.Module, name: str, probe: Probe):
        self._trees, self._class, self._name, self._probe = (original, module), type(original).__name__, name, probe
        self._paths = dict.fromkeys(path for path, _ in original.named_modules())
        self._kind = getattr(getattr(original, "config", None), "model_type", "")
        self._places: dict[Site, Site] = {}  # of sites, some of which are aliases

    def named(self, items: Iterable[Any], side: Side) -> list[Site]:
        """Returns the places of strings, patterns, sites, modules or envoys.

        Raises:
            SiteError: Something is not in the model.
        """
        wanted = [self._alias(self._site(item, side)) for item in items]
        return [self._place(site) for site in expand(wanted, self._paths, model=self._class)]

    def places(self, sites: SitesLike) -> dict[Site, Site]:
        """Returns the sites, and the matches of patterns, each with its place in the model."""
        places: dict[Site, Site] = {}
        for site in parse_sites(sites):
            known = site in self._places or self._alias(site) is not site
            matches = [site] if known else expand(site, self._paths, model=self._class)
            places.update((match, self._place(match)) for match in matches)
        self._probe.add(places.values())
        return places

    def _site(self, item: Any, side: Side) -> Site:
        if isinstance(item, nn.Module):
            for tree in self._trees:
                for path, module in tree.named_modules():
                    if module is item:
                        return Site(path, side)
            raise SiteError(
                f"The module {type(item).__name__} is not a part of {self._name}; give one of its submodules."
            )
        path = None if isinstance(item, Site) else getattr(item, "path", None)
        if isinstance(path, str):  # an nnsight envoy: its path starts with the name of its root
            return Site(path.partition(".")[2], side)
        return Site.parse(item, side)

    def _alias(self, site: Site) -> Site:
        """Returns the site of a name that is the same in any model: of the embedding, or a hook."""
        if is_hook(site.path) and site.path not in self._paths:  # a model of TransformerLens has hooks
            return site_of_hook(site.path, self._paths, f"{self._name} {self._kind}")._replace(call=site.call)
        if site.path != EMBEDDING or any(path.split(".")[-1] == EMBEDDING for path in self._paths):
            return site
        return site._replace(path=embedding_path(self._probe))

    def _place(self, site: Site) -> Site:
        """Returns where a site is: itself, or what an alias stands for."""
        if site not in self._places:
            place = self._alias(site)
            if place.side == "heads":
                place = heads_site(self._probe, place.path)._replace(call=place.call)
            self._places[site] = place
        return self._places[site]
