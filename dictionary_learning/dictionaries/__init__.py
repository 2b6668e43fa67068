"""Dictionaries: a wiring and a nonlinearity, with known names for pairs of them."""

from dictionary_learning.dictionaries._base import DICTIONARIES, Dictionary, Reconstruction
from dictionary_learning.dictionaries._calibration import calibrate
from dictionary_learning.dictionaries._coder import Coder
from dictionary_learning.dictionaries._conversion import expand_or_convert
from dictionary_learning.dictionaries._folding import fold_decoder_norm_
from dictionary_learning.dictionaries._info import DictionaryInfo
from dictionary_learning.dictionaries._initialization import geometric_median
from dictionary_learning.dictionaries._leave_one_out import LeaveOneOut, leave_one_out
from dictionary_learning.dictionaries._named import (
    AbsTopKSAE,
    AutoEncoder,
    AutoEncoderNew,
    AutoEncoderTopK,
    BatchTopKSAE,
    GatedAutoEncoder,
    GroupMaxSAE,
    IdentityDict,
    JumpReluAutoEncoder,
    MatchingPursuitSAE,
    MatryoshkaBatchTopKSAE,
    autoencoder_class,
)
from dictionary_learning.dictionaries._normalized import Normalized
from dictionary_learning.dictionaries._parallel_coders import CrossLayerTranscoder, HeadAutoencoders, ParallelCoders
from dictionary_learning.dictionaries._pursuit import gradient_pursuit
from dictionary_learning.dictionaries._serialization import load_dictionary, save_dictionary
from dictionary_learning.dictionaries._trainable import InitConfig, Trainable
from dictionary_learning.dictionaries._wirings import (
    WIRINGS,
    Crosscoder,
    DictionaryShape,
    SkipAutoencoder,
    SparseAutoencoder,
    Transcoder,
    Wiring,
    have_same_parts,
    wiring_of,
)

__all__ = [
    "DICTIONARIES",
    "WIRINGS",
    "AbsTopKSAE",
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "Coder",
    "CrossLayerTranscoder",
    "Crosscoder",
    "Dictionary",
    "DictionaryInfo",
    "DictionaryShape",
    "GatedAutoEncoder",
    "GroupMaxSAE",
    "HeadAutoencoders",
    "IdentityDict",
    "InitConfig",
    "JumpReluAutoEncoder",
    "LeaveOneOut",
    "MatchingPursuitSAE",
    "MatryoshkaBatchTopKSAE",
    "Normalized",
    "ParallelCoders",
    "Reconstruction",
    "SkipAutoencoder",
    "SparseAutoencoder",
    "Trainable",
    "Transcoder",
    "Wiring",
    "autoencoder_class",
    "calibrate",
    "expand_or_convert",
    "fold_decoder_norm_",
    "geometric_median",
    "gradient_pursuit",
    "have_same_parts",
    "leave_one_out",
    "load_dictionary",
    "save_dictionary",
    "wiring_of",
]
