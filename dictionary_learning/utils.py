"""An old address; `load_dictionary` returns (dictionary, config) here."""

from dictionary_learning.compat._generators import (
    chunk_and_tokenize,
    hf_dataset_to_generator,
    hf_mixed_dataset_to_generator,
    hf_sequence_packing_dataset_to_generator,
    randomly_remove_system_prompt,
    simple_hf_mixed_dataset_to_generator,
    zst_to_generator,
)
from dictionary_learning.compat._loading import load_dictionary

__all__ = [
    "chunk_and_tokenize",
    "hf_dataset_to_generator",
    "hf_mixed_dataset_to_generator",
    "hf_sequence_packing_dataset_to_generator",
    "load_dictionary",
    "randomly_remove_system_prompt",
    "simple_hf_mixed_dataset_to_generator",
    "zst_to_generator",
]
