"""The options of `dictionary-learning train`, and what is checked before anything is loaded."""

import dataclasses
import importlib.util
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from dictionary_learning._said import saying
from dictionary_learning.cli._evaluation_options import EvaluationArguments
from dictionary_learning.cli._options import CaptureArguments
from dictionary_learning.cli._parser import option_of
from dictionary_learning.config import setting
from dictionary_learning.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from dictionary_learning.trainers import OptimizationConfig

_Normalization = Literal[
    "none", "unit_mean_square", "sqrt_dim", "expected_average_only_in", "layer_norm", "constant_norm_rescale"
]  # fmt: skip
"""Names of `NORMALIZATIONS`, which would import torch."""
_OF_A_CACHE = (
    "io", "layers", "layer_stride", "ctx_len", "refresh_batch_size", "remove_bos", "seqpos_slice",
    "max_activation_norm_multiple", "pack", "prefetch", "retrace", "n_ctxs", "storage_dtype", "max_examples",
    "shuffle_seed", "shuffle_buffer", "exclude_tokens", "add_special_tokens", "bos", "separator", "padding_side",
    "long_documents", "rows", "epochs", "vocab_size",
)  # fmt: skip
"""Options that were decided when a cache was written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments(EvaluationArguments, CaptureArguments):
    """Trains dictionaries on a language model's activations, and evaluates them on held-out text.

    Writes a report and prints the path of its page. Options of the trainer take several values
    each; a dictionary is trained for every combination, on every site.
    """

    positional: ClassVar = ("model", "data")
    model: str | None = None
    """The language model: a name on the Hugging Face hub, a local folder, or a GGUF file. With
    --cache it is loaded after training, to evaluate, and may be omitted."""
    data: str | None = None
    """The data: a file (.txt, .jsonl, .parquet, .npy and others), a folder or pattern of files, or
    a data set on the hub."""
    cache: str | None = None
    """Trains on a cache that `dictionary-learning cache` wrote, without a language model."""
    save_dir: str | None = None
    """The folder for the dictionaries, the metrics and the report; by default a new one,
    runs/<date>-<time>-<model>-<method>, which runs/latest then links to."""
    overwrite: bool = False
    """Whether the run that the folder holds is removed first."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints of the whole run, from which it resumes to the same bits.
    One is also written when Ctrl-C or SIGTERM stops the run."""
    keep_checkpoints: int = 2
    """The number of newest checkpoints that stay; those of --save-steps stay too."""
    resume: bool = False
    """Whether the run in --save-dir goes on from its newest checkpoint, with the same options."""
    resume_from: str | None = None
    """Goes on from another run, or from one checkpoint, and saves in --save-dir."""
    allow_changed: tuple[str, ...] = ()
    """Settings that may differ from those of the checkpoint: steps warmup_steps decay_start to
    train longer."""
    dry_run: bool = False
    """Whether only the plan is shown: dictionaries, tokens, memory, disk and time, of which a few
    forward passes and steps are measured. Nothing is written."""
    n_tokens: int = 1_000_000
    """Tokens to train on."""
    batch_size: int = 2048
    """Tokens in a training step: tokens, not sequences."""
    n_ctxs: int = 1024
    """Contexts in the shuffle buffer."""
    storage_dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    """The type of the rows in the shuffle buffer; by default the model's dtype."""
    storage_device: str | None = None
    """The device of the shuffle buffer, or of the rows that a cache serves; by default the model's,
    or the CPU."""
    cache_window: int = setting(8, at_least=1)
    """Files of a cache whose rows are shuffled with each other."""
    cache_order: bool = True
    """Whether rows of a cache are shuffled; otherwise they come as they were written."""
    end_of_data: Literal["stop", "repeat", "error"] = "repeat"
    """What happens when the data ends."""
    retrace: bool = False
    """Whether a checkpoint names the rows in the buffer instead of holding them: it is small, and
    the model reads their contexts again when the run resumes."""
    normalize_activations: bool | _Normalization = False
    """How activations are normalized in training where the method does not say; true for
    unit_mean_square."""
    n_eval_tokens: int | None = None
    """Tokens to evaluate the dictionaries on; by default a tenth of --n-tokens, but at least 4,096
    and at most 32,768."""
    n_fidelity_tokens: int | None = None
    """Tokens on which cross-entropy is measured, with each dictionary spliced in; by default a
    quarter of --n-eval-tokens, but at least 2,048 and at most 8,192."""
    eval_batch_size: int = setting(8, at_least=1)
    """Contexts in a forward pass of the evaluation."""
    eval_seed: int = 0
    """Seed of the evaluation's error bars and draws."""
    log_steps: int | None = None
    """Steps between two entries of the log; by default 100 entries."""
    autocast_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The type of the model's products in steps with loss_fn ce or kl, under torch.autocast;
    float32 for no autocast. Other losses choose the type of each product by themselves."""
    save_steps: tuple[int, ...] = ()
    """Steps after which the dictionaries are saved too."""
    save_format: str = "own"
    """The format of the dictionaries: own, dictionary_learning (ae.pt and config.json), sae_lens or
    sparsify. What it cannot express is saved as own, with a warning."""
    on_anomaly: Literal["skip", "stop", "rollback"] = "skip"
    """What follows on values that are not finite, and on a loss above --max-loss-ratio: such tokens
    and steps are left out; the run stops; or it returns to its newest checkpoint."""
    patience: int | None = None
    """Entries of the log, one after another, in which no dictionary's FVU becomes 1 % better, after
    which the run ends. There are 100 entries unless --log-steps says otherwise."""
    evaluate_every: int | None = None
    """Steps between two evaluations on the held-out documents while training, which changes no bit
    of the dictionaries; --n-eval-tokens and --n-fidelity-tokens say on how many tokens."""
    save_best: str | None = None
    """The metric by which the best dictionary so far is kept, in trainer_N/best: fvu,
    ce_recovered_zero, kl and others of the report, or l0=lower for one whose better side must be
    said; needs --evaluate-every."""
    placement: Literal["auto", "data", "dictionary", "latent"] = "auto"
    """What is spread over the processes that torchrun has started: the tokens of each step, with
    every dictionary on every process; the dictionaries, of which each has some; or the latents of
    each dictionary. By default what takes the least time and fits."""
    latent_ranks: int | None = None
    """With --placement latent, the number of processes that share the latents of a dictionary;
    others have other tokens."""
    tracing_ranks: int | None = None
    """How many of the processes that torchrun has started, the last ones, only run the language
    model, and send its activations to the others ahead of their steps."""
    wandb_project: str | None = None
    """Logs to this project on Weights & Biases."""
    wandb_entity: str | None = None
    """The user or team that the project is of."""
    verbose: bool = False
    """Whether all figures are logged too."""
    tensorboard: bool = False
    """Whether metrics are also written for TensorBoard, into the folder's tensorboard/."""


T = TypeVar("T", bound=TrainArguments)


def sized(arguments: T) -> T:
    """Returns options whose evaluation is no longer than the run makes worthwhile, unless said."""
    n_eval_tokens, n_fidelity_tokens = arguments.n_eval_tokens, arguments.n_fidelity_tokens
    if n_eval_tokens is None:
        n_eval_tokens = min(max(arguments.n_tokens // 10, 4_096), 32_768)
    if n_fidelity_tokens is None:
        n_fidelity_tokens = min(max(n_eval_tokens // 4, 2_048), 8_192)
    found = arguments.replace(n_eval_tokens=n_eval_tokens, n_fidelity_tokens=n_fidelity_tokens)
    return saying(found, arguments.said)


def check_run(arguments: TrainArguments, configs: "Sequence[OptimizationConfig]", given: Collection[str]) -> None:
    """Refuses what cannot be trained, before anything is loaded.

    Raises:
        ConfigError: there are no activations to train on, or batches are too small for the method.
    """
    if arguments.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise MissingDependencyError("wandb", "--wandb-project")
    if arguments.wandb_entity is not None and arguments.wandb_project is None:
        raise ConfigError("--wandb-entity says whose project it is: give --wandb-project too.")
    arguments.check_sites()
    needs_contexts = any(config.needs_contexts for config in configs)
    if arguments.resume and (arguments.save_dir is None or arguments.overwrite):
        raise ConfigError("--resume needs the folder of the run: give --save-dir, and no --overwrite.")
    if arguments.resume_from is not None and (arguments.save_dir is None or arguments.overwrite or arguments.resume):
        raise ConfigError(
            "--resume-from goes on from another folder: give --save-dir for what is saved, and neither --resume nor "
            "--overwrite."
        )
    if arguments.cache is None and (arguments.model is None or arguments.data is None):
        raise ConfigError(
            "Give a model and data to train on, as 'train MODEL DATA', or a cache, as 'train --cache FOLDER'."
        )
    if arguments.evaluate_every is not None and (arguments.model is None or arguments.data is None):
        raise ConfigError(
            "--evaluate-every splices dictionaries into a model that reads held-out text: give MODEL DATA."
        )
    if arguments.save_best is not None and arguments.evaluate_every is None:
        raise ConfigError("--save-best is decided by evaluations: give --evaluate-every too.")
    if arguments.cache is not None and needs_contexts:
        raise ConfigError("This method trains on whole contexts, with the model, and a cache has none. Omit --cache.")
    of_caches = [option_of(name) for name in ("cache_window", "cache_order") if name in given]
    if arguments.cache is None and of_caches:
        raise ConfigError(f"Got {of_caches[0]} without --cache, whose rows it is about. Leave it out.")
    _check_tracing(arguments, needs_contexts)
    decided = [option_of(name) for name in _OF_A_CACHE if name in given]
    if arguments.cache is not None and decided:
        raise ConfigError(
            f"Got {', '.join(decided)} with --cache: the cache was written with settings of its own, and knows sites "
            "but no layers. Leave them out, choose by --sites, or write another cache."
        )
    k = max((getattr(config, "k", None) or 1) if "k" in given else 1 for config in configs)
    least, what = max((1 if arguments.cache else arguments.ctx_len, "one context"), (k, f"k={k}"))
    size = arguments.batch_size
    if size < least:
        raise ConfigError(
            f"Got --batch-size {size}; a training step needs at least {least} tokens ({what}). The batch size counts "
            f"tokens, not sequences as in sparsify: {size} sequences are --batch-size {size * arguments.ctx_len}."
        )


def _check_tracing(arguments: TrainArguments, needs_contexts: bool) -> None:
    if arguments.tracing_ranks is None:
        return
    if arguments.cache is not None:
        raise ConfigError("Got --tracing-ranks with --cache, for which no language model runs. Leave it out.")
    if needs_contexts:
        raise ConfigError(
            "This method trains on whole contexts, beside the model that computes a loss of them: --tracing-ranks "
            "cannot move it to other processes. Leave it out."
        )
    if arguments.evaluate_every is not None:
        raise ConfigError(
            "Got --evaluate-every with --tracing-ranks: processes that train have no model to read held-out text. "
            "Leave one out; the report at the end is made in any case."
        )
    if not arguments.dry_run:  # of one process
        from dictionary_learning.parallel import check_division, world_size

        check_division(world_size(), arguments.tracing_ranks)


def best_of(metric: str | None) -> str | dict[str, str] | None:
    """Returns a metric, or {metric: its better side}, as `trainSAE` takes it."""
    name, equals, side = (metric or "").partition("=")
    return {name: side} if equals else metric
