"""The config of mats_sae_training, with its defaults and its units."""

from collections.abc import Mapping
from typing import Any, ClassVar

from dictionary_learning.compat._no_counterpart import refusing
from dictionary_learning.compat.saelens import config
from dictionary_learning.compat.saelens._fields import MATS
from dictionary_learning.compat.saelens._names import MATS_NAMES


class LanguageModelSAERunnerConfig(config.LanguageModelSAERunnerConfig):
    """That of SAELens, where errors are means, divided by the distance from the mean."""

    flat_defaults: ClassVar[Mapping[str, Any]] = MATS
    is_mats: ClassVar[bool] = True


__getattr__ = refusing(__name__, "mats_sae_training", MATS_NAMES["config"])
