"""Published recipes: a function for each paper, which returns the config of a trainer.

Every setting can be changed by name: `gao_2024(k=64)`, `april_2024(sparsity_penalty=2)`. Learning
rates, warm-ups and penalties are those of the papers, for runs of their length; a short run does
not converge with them. docs/methods.md has results on a small model, and what was changed for its
length.
"""

from collections.abc import Callable
from typing import Any

from dictionary_learning.config import Registry
from dictionary_learning.trainers._config import OptimizationConfig
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.end_to_end import EndToEndTrainer
from dictionary_learning.trainers.gated import GatedSAETrainer
from dictionary_learning.trainers.group_max import GroupMaxTrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matching_pursuit import MatchingPursuitTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate, TrainerStandard
from dictionary_learning.trainers.top_k import TrainerTopK

RECIPES: Registry[Callable[..., OptimizationConfig]] = Registry("recipe")

_PLAIN_ADAM: dict[str, Any] = {
    "beta1": 0.9,
    "beta2": 0.999,
    "encoder_lr_factor": 1.0,
    "decoder_lr_factor": 1.0,
    "max_grad_norm": 1.0,
    "scale_encoder": False,
}
"""Settings of the top-k papers where the defaults of this package differ."""
_GEMMA_SCOPE: dict[str, Any] = {"lr": 7e-5, "bandwidth": 0.001, "normalize": "unit_mean_square"}


@RECIPES.register("bricken_2023")
def bricken_2023(**changes: Any) -> TrainerStandard.Config:
    """L1 with unit rows and resampling.

    Bricken et al. 2023, "Towards Monosemanticity", Transformer Circuits.
    """
    return _config(TrainerStandard.Config, changes, lr=1e-3, sparsity_penalty=0.1, resample_steps=25_000)


@RECIPES.register("april_2024")
def april_2024(**changes: Any) -> StandardTrainerAprilUpdate.Config:
    """L1 weighted by decoder norm, free rows, no resampling; activations of mean norm sqrt(dim).

    Conerly et al. 2024, "Update on how we train SAEs", Transformer Circuits, April update.
    """
    settings = {"lr": 5e-5, "sparsity_penalty": 5.0, "normalize": "sqrt_dim", "b_dec_init_method": "zeros"}
    return _config(StandardTrainerAprilUpdate.Config, changes, **settings)


@RECIPES.register("karvonen_2024")
def karvonen_2024(**changes: Any) -> PAnnealTrainer.Config:
    """P-annealing. Karvonen et al. 2024, https://arxiv.org/abs/2408.00113; p_end of SAEBench."""
    return _config(PAnnealTrainer.Config, changes, lr=1e-3, sparsity_penalty=0.1, p_end=0.2)


@RECIPES.register("rajamanoharan_2024_gated")
def rajamanoharan_2024_gated(**changes: Any) -> GatedSAETrainer.Config:
    """Gated. Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014."""
    return _config(GatedSAETrainer.Config, changes, lr=3e-4, sparsity_penalty=0.1, normalize="unit_mean_square")


@RECIPES.register("rajamanoharan_2024_jumprelu", "gemma_scope")
def rajamanoharan_2024_jumprelu(**changes: Any) -> JumpReluTrainer.Config:
    """JumpReLU with a penalty on L0. Rajamanoharan et al. 2024, https://arxiv.org/abs/2407.14435.

    Settings of Gemma Scope: Lieberum et al. 2024, https://arxiv.org/abs/2408.05147, section 3.2.
    """
    return _config(JumpReluTrainer.Config, changes, **_GEMMA_SCOPE, sparsity_function="l0", sparsity_penalty=6e-4)


@RECIPES.register("gemma_scope_2")
def gemma_scope_2(**changes: Any) -> JumpReluTrainer.Config:
    """JumpReLU with a quadratic penalty on the L0 of each token (Google DeepMind 2025)."""
    penalty = {"sparsity_function": "quadratic_l0", "sparsity_penalty": 1e-4, "target_l0": 32.0}
    return _config(JumpReluTrainer.Config, changes, **_GEMMA_SCOPE, **penalty)


@RECIPES.register("anthropic_2025")
def anthropic_2025(**changes: Any) -> JumpReluTrainer.Config:
    """JumpReLU with a tanh penalty, a pull on dead latents, and gradients through the jump.

    Anthropic 2025, "Circuits Updates - January 2025", Transformer Circuits.
    """
    return _config(
        JumpReluTrainer.Config,
        changes,
        lr=2e-4,
        sparsity_function="tanh",
        sparsity_penalty=20.0,
        tanh_scale=4.0,
        scale_sparsity_penalty_by_decoder_norm=True,
        pre_act_loss_coefficient=3e-6,
        bandwidth=2.0,  # in units of activations of mean norm sqrt(dim)
        initial_threshold=0.1,
        jumprelu_ste_to_input=True,
        beta1=0.9,
        unit_norm_decoder=False,
        decoder_init_norm=0.1,
        normalize="sqrt_dim",
    )


@RECIPES.register("gao_2024")
def gao_2024(**changes: Any) -> TrainerTopK.Config:
    """TopK with AuxK, layer norm of tokens, a constant learning rate and averaged weights.

    Gao et al. 2024, https://arxiv.org/abs/2406.04093, section 2 and appendix A.
    """
    settings = {"lr": 1e-4, "schedule": "constant", "ema_decay": 0.999, "normalize": "layer_norm"}
    return _config(TrainerTopK.Config, changes, **_PLAIN_ADAM, **settings)


@RECIPES.register("bussmann_2024_batch_top_k")
def bussmann_2024_batch_top_k(**changes: Any) -> BatchTopKTrainer.Config:
    """BatchTopK. Bussmann et al. 2024, https://arxiv.org/abs/2412.06410."""
    return _config(BatchTopKTrainer.Config, changes, **_PLAIN_ADAM, lr=3e-4)


@RECIPES.register("bussmann_2025_matryoshka")
def bussmann_2025_matryoshka(**changes: Any) -> MatryoshkaBatchTopKTrainer.Config:
    """Matryoshka BatchTopK. Bussmann et al. 2025, https://arxiv.org/abs/2503.17547."""
    return _config(MatryoshkaBatchTopKTrainer.Config, changes, **_PLAIN_ADAM, lr=3e-4)


@RECIPES.register("saebench")
def saebench(**changes: Any) -> TrainerTopK.Config:
    """TopK with the settings of the SAEBench baselines, for 244,140 steps of 2,048 tokens.

    Karvonen et al. 2025, https://arxiv.org/abs/2503.09532, appendix B.
    """
    return _config(TrainerTopK.Config, changes, **_PLAIN_ADAM, lr=3e-4, eps=1e-8)


@RECIPES.register("sparsify")
def sparsify(**changes: Any) -> TrainerTopK.Config:
    """TopK as in EleutherAI's sparsify: schedule-free Signum, and no AuxK."""
    # lr is left to the trainer, which knows the number of latents: sparsify's own law, at most the
    # rate of 512
    optimizer = {"optimizer": "signum_schedule_free", "schedule": "constant"}
    return _config(TrainerTopK.Config, changes, **_PLAIN_ADAM, **optimizer, b_dec_init_method="mean", auxk_alpha=0.0)


@RECIPES.register("sparsify_group_max")
def sparsify_group_max(**changes: Any) -> GroupMaxTrainer.Config:
    """GroupMax, the nonlinearity of sparsify, with the settings of this package."""
    return _config(GroupMaxTrainer.Config, changes)


@RECIPES.register("sparsify_transcoder", "paulo_2025")
def sparsify_transcoder(**changes: Any) -> TrainerTopK.Config:
    """A TopK transcoder with an affine skip.

    Paulo et al. 2025, https://arxiv.org/abs/2501.18823; EleutherAI's sparsify.
    """
    return _config(TrainerTopK.Config, changes, wiring="skip_transcoder", b_dec_init_method="mean")


@RECIPES.register("dunefsky_2024")
def dunefsky_2024(**changes: Any) -> TrainerStandard.Config:
    """A transcoder with L1. Dunefsky et al. 2024, https://arxiv.org/abs/2406.11944."""
    return _config(TrainerStandard.Config, changes, wiring="transcoder", lr=4e-4, sparsity_penalty=1e-3)


@RECIPES.register("lindsey_2024")
def lindsey_2024(**changes: Any) -> StandardTrainerAprilUpdate.Config:
    """A crosscoder with L1 weighted by norms (Lindsey et al. 2024, Transformer Circuits)."""
    settings = {"wiring": "crosscoder", "lr": 5e-5, "sparsity_penalty": 2.0, "normalize": "sqrt_dim"}
    return _config(StandardTrainerAprilUpdate.Config, changes, **settings)


@RECIPES.register("minder_2025")
def minder_2025(**changes: Any) -> BatchTopKTrainer.Config:
    """A BatchTopK crosscoder. Minder et al. 2025, https://arxiv.org/abs/2504.02922."""
    return _config(BatchTopKTrainer.Config, changes, wiring="crosscoder", k=100, normalize="sqrt_dim")


@RECIPES.register("ameisen_2025")
def ameisen_2025(**changes: Any) -> JumpReluTrainer.Config:
    """A JumpReLU cross-layer transcoder (Ameisen et al. 2025, Transformer Circuits)."""
    return anthropic_2025(
        **{"wiring": "cross_layer_transcoder", "decoder_init_norm": None, "sparsity_penalty": 1.0, **changes}
    )


@RECIPES.register("costa_2025")
def costa_2025(**changes: Any) -> MatchingPursuitTrainer.Config:
    """Matching pursuit. Costa et al. 2025, https://arxiv.org/abs/2506.03093."""
    return _config(MatchingPursuitTrainer.Config, changes)


@RECIPES.register("braun_2024")
def braun_2024(**changes: Any) -> EndToEndTrainer.Config:
    """End to end. Braun et al. 2024, https://arxiv.org/abs/2405.12241, with TopK in place of L1."""
    return _config(EndToEndTrainer.Config, changes)


def __getattr__(name: str) -> Callable[..., OptimizationConfig]:
    """Returns a recipe by a name that it is registered under, beside that of its function."""
    if name in RECIPES:
        return RECIPES[name]
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def _config(config: type[Any], changes: dict[str, Any], **settings: Any) -> Any:
    """Returns the settings with changes."""
    return config.from_dict({**settings, **changes})
