"""What is set from data before the first step, once, around what was set by hand."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._serialization import nonfinite_names
from dictionary_learning.errors import DataError
from dictionary_learning.trainers._batch import Batch, usual_rows
from dictionary_learning.trainers._by_hand import InitialWeights

logger = logging.getLogger(__name__)


class Initialization:
    """Sets what depends on data. Weights that were changed since it was made stay as they are.

    Args:
        dictionary: Whose weights are set.
        set_from_data: The method's own initialization, from inputs and targets.
    """

    def __init__(self, dictionary: Dictionary, set_from_data: Callable[[Tensor, Tensor], None]):
        self._dictionary, self._set_from_data = dictionary, set_from_data
        self._weights_before = InitialWeights(dictionary)

    def run(self, batch: Batch, *, is_first: bool) -> None:
        """Initializes from a batch.

        Args:
            batch: A sample of the activations.
            is_first: Whether no step was made. Later, all weights stay, and the rest is set.

        Raises:
            DataError: The activations are so large that weights are not finite.
        """
        with self._weights_before.keep(everything=not is_first) as kept:
            with torch.no_grad(), torch.autocast(batch.x.device.type, enabled=False):
                dtype = torch.promote_types(self._dictionary.dtype, torch.float32)
                x, y = usual_rows(batch.x.to(dtype), None if batch.y is batch.x else batch.y.to(dtype))
                self._set_from_data(x, y)
            if bad := nonfinite_names(self._dictionary):
                raise DataError(
                    f"The activations are so large (up to {batch.x.abs().max():.1e}) that the initial "
                    f"{', '.join(bad)} are not finite. Choose a normalization, such as normalize='unit_mean_square', "
                    "or look at the site."
                )
        if kept:
            why = f"were set by hand and stay: {', '.join(sorted(kept))}" if is_first else "stay: this is not step 0"
            logger.info("What was not initialized from the data: weights %s.", why)
