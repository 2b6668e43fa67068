"""Names of other packages are there, or are refused with what to use instead."""

import importlib
import pkgutil
import re

import pytest

import dictionary_learning
from dictionary_learning import attribution, interventions
from dictionary_learning.compat import _gone, saelens, sparsify
from dictionary_learning.compat.saelens._names import MATS_NAMES, NAMES as OF_SAELENS, SAE_ATTRIBUTES
from dictionary_learning.compat.saelens.sae import SAE
from dictionary_learning.compat.sparsify._names import NAMES as OF_SPARSIFY
from dictionary_learning.errors import ConfigError, DictionaryLearningError, NoCounterpartError

_COMPAT = "dictionary_learning.compat"
REFUSED = [
    *((f"{_COMPAT}.saelens", name, instead) for name, instead in OF_SAELENS.items()),
    *((f"{_COMPAT}.sparsify", name, instead) for name, instead in OF_SPARSIFY.items()),
    *((f"{_COMPAT}.sae_training.{module}", name, instead) for module, names in MATS_NAMES.items() for name, instead in names.items()),
]  # fmt: skip
"""Each name, where it is imported from, and what the error says."""
PUBLIC = {
    # `__all__` of SAELens 6.54.12, and names of 3 to 5
    f"{_COMPAT}.saelens": """
        SAE SAEConfig TrainingSAE TrainingSAEConfig HookedSAETransformer ActivationsStore LanguageModelSAERunnerConfig
        LanguageModelSAETrainingRunner CacheActivationsRunnerConfig CacheActivationsRunner PretokenizeRunnerConfig
        PretokenizeRunner pretokenize_runner run_evals upload_saes_to_huggingface PretrainedSaeHuggingfaceLoader
        PretrainedSaeDiskLoader register_sae_class register_sae_training_class StandardSAE StandardSAEConfig
        StandardTrainingSAE StandardTrainingSAEConfig GatedSAE GatedSAEConfig GatedTrainingSAE GatedTrainingSAEConfig
        TopKSAE TopKSAEConfig TopKTrainingSAE TopKTrainingSAEConfig JumpReLUSAE JumpReLUSAEConfig JumpReLUTrainingSAE
        JumpReLUTrainingSAEConfig SAETrainingRunner SAETrainer LoggingConfig AbsTopKSAE AbsTopKSAEConfig
        AbsTopKTrainingSAE AbsTopKTrainingSAEConfig BatchTopKTrainingSAE BatchTopKTrainingSAEConfig Transcoder
        TranscoderConfig SkipTranscoder SkipTranscoderConfig JumpReLUTranscoder JumpReLUTranscoderConfig
        JumpReLUSkipTranscoder JumpReLUSkipTranscoderConfig MatryoshkaBatchTopKTrainingSAE
        MatryoshkaBatchTopKTrainingSAEConfig TemporalSAE TemporalSAEConfig MatchingPursuitSAE
        MatchingPursuitTrainingSAE MatchingPursuitSAEConfig MatchingPursuitTrainingSAEConfig MultiSAEEvaluator
        MultiSAETrainingRunner MultiSAETrainingRunnerConfig SAETransformerBridge language_model_sae_runner
        LMSparseAutoencoderSessionloader ToyModelSAERunner ToyModelSAERunnerConfig toy_model_sae_runner
        get_pretrained_saes_directory""",
    f"{_COMPAT}.sparsify": """
        Sae SaeConfig SaeTrainer SparseCoder SparseCoderConfig Trainer TrainConfig TranscoderConfig decoder_impl
        get_layer_list resolve_widths set_submodule simple_parse_args_string Muon SignSGD EncoderOutput
        fused_encoder""",
    f"{_COMPAT}.sparsify.data": "chunk_and_tokenize MemmapDataset",
    f"{_COMPAT}.sae_training.config": "LanguageModelSAERunnerConfig CacheActivationsRunnerConfig",
    f"{_COMPAT}.sae_training.lm_runner": "language_model_sae_runner",
    f"{_COMPAT}.sae_training.utils": "LMSparseAutoencoderSessionloader",
    f"{_COMPAT}.sae_training.activations_store": "ActivationsStore",
    f"{_COMPAT}.sae_training.sparse_autoencoder": "SparseAutoencoder",
    "dictionary_learning": "AutoEncoder GatedAutoEncoder JumpReluAutoEncoder ActivationBuffer __version__",
    "dictionary_learning.buffer": "ActivationBuffer HeadActivationBuffer NNsightActivationBuffer",
    "dictionary_learning.pytorch_buffer": "ActivationBuffer collect_activations EarlyStopException",
    "dictionary_learning.activault_s3_buffer": "S3RCache ActivaultS3ActivationBuffer create_s3_client",
    "dictionary_learning.config": "DEBUG",
    "dictionary_learning.dictionary": """
        Dictionary AutoEncoder GatedAutoEncoder JumpReluAutoEncoder AutoEncoderNew IdentityDict""",
    "dictionary_learning.evaluation": "evaluate loss_recovered",
    "dictionary_learning.grad_pursuit": "grad_pursuit",
    "dictionary_learning.interp": "feature_effect examine_dimension feature_umap",
    "dictionary_learning.training": "trainSAE get_norm_factor log_stats new_wandb_process",
    "dictionary_learning.utils": """
        hf_dataset_to_generator zst_to_generator load_dictionary get_nested_folders get_submodule truncate_model""",
    "dictionary_learning.trainers": """
        StandardTrainer GatedSAETrainer PAnnealTrainer GatedAnnealTrainer TopKTrainer JumpReluTrainer BatchTopKTrainer
        BatchTopKSAE""",
    "dictionary_learning.trainers.jumprelu": "RectangleFunction JumpReLUFunction StepFunction",
    "dictionary_learning.trainers.matryoshka_batch_top_k": "apply_temperature",
}
"""Public names of each package, by the place here that stands for theirs."""


@pytest.mark.parametrize(("module", "name", "instead"), REFUSED)
def test_a_name_without_counterpart_says_what_to_use(module, name, instead):
    with pytest.raises(NoCounterpartError, match=re.escape(instead)) as error:
        exec(f"from {module} import {name}")
    assert isinstance(error.value, ImportError) and isinstance(error.value, DictionaryLearningError)
    assert str(error.value).startswith(f"{name} of ") and str(error.value).endswith(".")


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_there_or_is_refused(module):
    for name in PUBLIC[module].split():
        try:
            exec(f"from {module} import {name}")
        except NoCounterpartError:
            assert (module, name) in {(place, refused) for place, refused, _ in REFUSED}


@pytest.mark.parametrize("name", _gone._REASONS)
def test_what_is_gone_of_0_1_is_refused_when_it_is_used(name):
    with pytest.raises(ConfigError, match=re.escape(_gone._REASONS[name])):
        getattr(_gone, name)()


@pytest.mark.parametrize("name", SAE_ATTRIBUTES)
def test_attributes_of_an_sae_without_counterpart_say_what_to_use(name):
    sae = SAE(dictionary_learning.AutoEncoder(4, 8))
    with pytest.raises(AttributeError, match=re.escape(SAE_ATTRIBUTES[name])):
        getattr(sae, name)


def test_what_errors_name_exists():
    said = " ".join([*(instead for *_, instead in REFUSED), *_gone._REASONS.values(), *SAE_ATTRIBUTES.values()])
    for path in set(re.findall(r"dictionary_learning(?:\.\w+)+", said)):
        pkgutil.resolve_name(path)
    places = (dictionary_learning, interventions, attribution, saelens, sparsify, dictionary_learning.data,
              dictionary_learning.synthetic, dictionary_learning.trainers)  # fmt: skip
    for name in set(re.findall(r"(?<![\w.])([A-Za-z_]\w+)\(", said)) - {"sae"}:
        assert any(name in dir(place) or name in getattr(place, "__all__", ()) for place in places), name


def test_an_unknown_name_is_an_ordinary_import_error():
    for module in {module for module, *_ in REFUSED}:
        with pytest.raises(ImportError) as error:
            exec(f"from {module} import nothing_of_this_name")
        assert not isinstance(error.value, NoCounterpartError)
        assert not hasattr(importlib.import_module(module), "nothing_of_this_name")
