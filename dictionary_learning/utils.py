"""An old address; `load_dictionary` returns (dictionary, config) here."""

from dictionary_learning.compat._generators import (
    chunk_and_tokenize as chunk_and_tokenize,
    hf_dataset_to_generator as hf_dataset_to_generator,
    hf_mixed_dataset_to_generator as hf_mixed_dataset_to_generator,
    hf_sequence_packing_dataset_to_generator as hf_sequence_packing_dataset_to_generator,
    randomly_remove_system_prompt as randomly_remove_system_prompt,
    simple_hf_mixed_dataset_to_generator as simple_hf_mixed_dataset_to_generator,
    zst_to_generator as zst_to_generator,
)
from dictionary_learning.compat._loading import load_dictionary as load_dictionary
from dictionary_learning.compat._models import (
    get_nested_folders as get_nested_folders,
    get_submodule as get_submodule,
    truncate_model as truncate_model,
)
