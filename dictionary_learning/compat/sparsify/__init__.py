"""EleutherAI's sparsify, and its older `sae`, by their names: change the import, and nothing else.

    from dictionary_learning.compat.sparsify import Sae, SaeConfig, TrainConfig, Trainer
    from dictionary_learning.compat.sparsify.data import chunk_and_tokenize

`python -m dictionary_learning.compat.sparsify MODEL DATASET --batch_size 1` has its options.
docs/migrating.md says what differs, and why.
"""

from dictionary_learning.compat._no_counterpart import refusing
from dictionary_learning.compat.sparsify._names import NAMES
from dictionary_learning.compat.sparsify.config import SaeConfig, SparseCoderConfig, TrainConfig, TranscoderConfig
from dictionary_learning.compat.sparsify.sparse_coder import EncoderOutput, ForwardOutput, Sae, SparseCoder
from dictionary_learning.compat.sparsify.trainer import SaeTrainer, Trainer

__all__ = [
    "EncoderOutput",
    "ForwardOutput",
    "Sae",
    "SaeConfig",
    "SaeTrainer",
    "SparseCoder",
    "SparseCoderConfig",
    "TrainConfig",
    "Trainer",
    "TranscoderConfig",
]

__getattr__ = refusing(__name__, "sparsify", NAMES)
