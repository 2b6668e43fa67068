"""The loader of sessions of mats_sae_training."""

from dictionary_learning.compat.saelens.runner import (
    LMSparseAutoencoderSessionloader as LMSparseAutoencoderSessionloader,
)
