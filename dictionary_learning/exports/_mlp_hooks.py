"""Sites before and behind MLPs by the hook names of circuit-tracer."""

import re
from typing import NamedTuple

from dictionary_learning.dictionaries import DictionaryInfo
from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site

_SITE = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.(.+)")
_READ = {r"(mlp|feed_forward):in": "mlp.hook_in", r"pre_feedforward_layernorm:out": "mlp.hook_in",
         r"pre_feedforward_layernorm:in": "hook_resid_mid"}  # fmt: skip
_WRITTEN = {r"(mlp|feed_forward):out": "mlp.hook_out", r"post_feedforward_layernorm:out": "hook_mlp_out"}
_NAMES = ("hook_resid_mid", "mlp.hook_in", "hook_mlp_out", "mlp.hook_out", "ln2.hook_normalized")


class MLPHooks(NamedTuple):
    """Where transcoders read and write; None and no layers where that is not known."""

    reads: str | None
    writes: str | None
    layers: tuple[int, ...]


def hooks_of(info: DictionaryInfo) -> MLPHooks:
    """Returns where a transcoder reads and writes, as its files say it."""
    reads, writes = [_parse(s, _READ) for s in info.sites], [_parse(s, _WRITTEN) for s in info.target_sites]
    layers = tuple(layer for layer, _ in reads if layer is not None)
    same = len(layers) == len(reads) and (not writes or layers == tuple(layer for layer, _ in writes))
    return MLPHooks(_only(reads), _only(writes), layers if same else ())


def _parse(text: str, hooks: dict[str, str]) -> tuple[int | None, str | None]:
    match = _SITE.fullmatch(text)
    if match is not None and match[2] in _NAMES:
        return int(match[1]), match[2]
    try:
        site = Site.parse(text)
    except SiteError:
        return None, None
    match = _SITE.fullmatch(site.path)
    if match is None or site.index:
        return None, None
    part = f"{match[2]}:{site.side}"
    return int(match[1]), next((hook for pattern, hook in hooks.items() if re.fullmatch(pattern, part)), None)


def _only(found: list[tuple[int | None, str | None]]) -> str | None:
    names = {hook for _, hook in found}
    return names.pop() if len(names) == 1 else None
