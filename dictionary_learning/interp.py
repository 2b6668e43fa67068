"""An old address: `dictionary_learning.interpretation` does this for all latents at once."""

from dictionary_learning.compat._interp import (
    examine_dimension as examine_dimension,
    feature_effect as feature_effect,
    feature_umap as feature_umap,
)
