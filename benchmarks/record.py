"""Records what the package computes, to the bit, so that a later revision can be compared with it.

    python benchmarks/record.py OUT.json [--only PATTERN ...]
    python benchmarks/record.py --compare OLD.json NEW.json [--allow PATTERN ...]

A record is a mapping from the name of a case to its figures. Tensors stand in it as digests, floats
as hexadecimal numbers, and a case that raises as the class of its exception. The package recorded
is the one beside this script. --only takes shell patterns of cases, as "train/*/heads/*", and
--allow of a case and a field, as "train/*/heads/* options.*". Two records can only be compared
where they come from one machine and one version of PyTorch. About 3 minutes on one core.

The script calls public functions alone; what else it needs stands in the adapters below, which are
to be changed with the package. It is one file, so that it can be copied beside another revision.
"""

# ruff: noqa: E402  (Triton looks at the environment when it is imported)

import argparse
import atexit
import contextlib
import copy
import fnmatch
import functools
import hashlib
import importlib
import importlib.util
import itertools
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["TRITON_INTERPRET"] = "1"
os.environ["DICTIONARY_LEARNING_BACKEND"] = ""

import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import dictionary_learning as dl
from dictionary_learning import dictionaries, ops, synthetic, trainers
from tests import tiny

Figures = dict[str, Any]
Case = tuple[str, Callable[[], Figures]]

DIM, OUTPUT_DIM, HEADS, LATENTS = 32, 24, 4, 96
STEPS, TOKENS = 30, 64
LAYER = "model.layers.1"
SITES = {
    "autoencoder": ["m.0:out"],
    "heads": ["m.0:out"],
    "transcoder": ["m.0:in", "m.0:out"],
    "skip_transcoder": ["m.0:in", "m.0:out"],
    "crosscoder": ["m.0:out", "m.1:out", "m.2:out"],
    "cross_layer_transcoder": ["m.0:in", "m.0:out", "m.1:in", "m.1:out"],
}
MODULES = {
    "autoencoder": ([LAYER], "out"),
    "heads": ([LAYER], "heads"),
    "transcoder": ([f"{LAYER}.mlp"], "in_and_out"),
    "skip_transcoder": ([f"{LAYER}.mlp"], "in_and_out"),
    "crosscoder": ([f"model.layers.{n}" for n in range(3)], "out"),
    "cross_layer_transcoder": ([f"model.layers.{n}.mlp" for n in range(2)], "in_and_out"),
}
"""Where contexts of the language model are taken for each wiring."""
CONTEXTS = ("end_to_end", "temporal")
"""Trainers that read whole contexts."""
DEAD = {"dict_size": LATENTS, "dead_feature_threshold": 200}
"""Latents die within four batches, so that what brings them back is at work."""
SELECTING: Figures = {"k": 4, "threshold_start_step": 3, **DEAD}
PENALIZED: Figures = {"sparsity_penalty": 0.15, "lr": 5e-3, **DEAD}
METHODS: dict[str, Figures] = {
    "standard": PENALIZED,
    "standard_april_update": PENALIZED,
    "p_anneal": {**PENALIZED, "p_end": 0.5},
    "gated": {**PENALIZED, "lr": 3e-3},
    "gated_anneal": {**PENALIZED, "lr": 3e-3, "p_end": 0.5},
    "jump_relu": {**PENALIZED, "sparsity_penalty": 1.0, "target_l0": 3.0, "bandwidth": 0.1},
    "group_max": {**SELECTING, "k": 12},
    "temporal": {"k": 4, "dict_size": LATENTS},
}
"""The settings of each method that is not one of those that keep k latents."""
WIRED = ("batch_top_k", "standard", "jump_relu")
VARIED = ("top_k", "batch_top_k", "matryoshka_batch_top_k", "standard", "jump_relu", "gated")
NORMALIZATIONS = ("none", "unit_mean_square", "sqrt_dim", "layer_norm", "constant_norm_rescale")
SCHEDULES = ("linear", "constant", "cosine", "cosine_restarts", "inverse_sqrt", "exponential")
PENALTIES = ("l1", "lp", "lp_root", "tanh", "l0", "quadratic_l0", "target_l0", "entropy")
RARE: Figures = {
    "dead_feature_threshold": 0.35,
    "dead_feature_window": 200,
    "feature_sampling_window": 128,
}
"""Dead are latents that seldom fire: within so few steps a penalty makes no others."""
REVIVING: dict[str, Figures] = {
    "resample_steps": {"resample_steps": 10},
    "ghost_grads": {"use_ghost_grads": True},
    "pre_act_loss": {"pre_act_loss_coefficient": 0.1},
    "auxk": {"auxk_alpha": 0.1, "k_aux": 8},
    "auxk_every": {"auxk_alpha": 0.1, "auxk_every": 2},
}
VARIANTS: dict[str, Figures] = {
    **REVIVING,
    **{f"{name}, rare": {**changes, **RARE} for name, changes in REVIVING.items()},
    "ema_decay": {"ema_decay": 0.9},
    "micro_acc_steps": {"micro_acc_steps": 2},
    "grad_acc_steps": {"grad_acc_steps": 2},
    "k_anneal_steps": {"k_anneal_steps": 15},
    "multi_topk": {"multi_topk": True},
    "orthogonal_init": {"orthogonal_init": True},
    "decoder_init_norm": {"decoder_init_norm": 0.5},
    "untied_init": {"init_encoder_as_decoder_transpose": False},
    "scale_encoder": {"scale_encoder": True},
    "keep_encoder": {"scale_encoder": False},
    "free_rows": {"unit_norm_decoder": False},
    "unit_rows": {"unit_norm_decoder": True},
    "rank_by_norm": {"rank_by_norm": True, "unit_norm_decoder": False},
    "subtract_b_dec": {"apply_b_dec_to_input": True},
    "keep_b_dec": {"apply_b_dec_to_input": False},
    "b_dec_mean": {"b_dec_init_method": "mean"},
    "b_dec_zeros": {"b_dec_init_method": "zeros"},
    "lr_factors": {"encoder_lr_factor": 0.3, "decoder_lr_factor": 3.0},
    "max_grad_norm": {"max_grad_norm": 0.5},
    "warmup": {"warmup_steps": 5, "decay_start": 20},
    "betas": {"beta1": 0.5, "beta2": 0.9, "eps": 1e-6},
    "seed": {"seed": 1},
    "older_names": {"lr_scheduler_name": "cosine", "lr_warm_up_steps": 5, "top_k_aux": 8},
    "lp_norm": {"sparsity_function": "lp", "lp_norm": 0.5},
    "lp_root_norm": {"sparsity_function": "lp_root", "lp_norm": 0.5},
    "penalty_by_norm": {"scale_sparsity_penalty_by_decoder_norm": True, "unit_norm_decoder": False},
    "sparsity_warmup": {"sparsity_warmup_steps": 20},
    "mse_variance": {"mse_loss_normalization": "variance"},
    "mse_dense_batch": {"mse_loss_normalization": "dense_batch"},
    **{f"normalize={name}": {"normalize": name} for name in (*NORMALIZATIONS, "whitening")},
    **{f"schedule={name}": {"schedule": name} for name in SCHEDULES},
    **{f"sparsity_function={name}": {"sparsity_function": name} for name in PENALTIES},
}
WIRED_VARIANTS = (
    *REVIVING,
    "ema_decay",
    "micro_acc_steps",
    "orthogonal_init",
    "decoder_init_norm",
    "untied_init",
    "free_rows",
    "unit_rows",
    "rank_by_norm",
    "penalty_by_norm",
    "b_dec_mean",
    *(f"normalize={name}" for name in ("none", "sqrt_dim", "layer_norm", "whitening")),
)
"""Variants that are also tried with the other wirings."""
OWN_VARIANTS: dict[str, dict[str, Figures]] = {
    "matryoshka_batch_top_k": {
        "groups": {"group_fractions": (0.25, 0.75), "group_weights": (0.3, 0.7)},
    },
    "jump_relu": {
        **{f"kernel={k}": {"kernel": k} for k in ("triangle", "gaussian", "epanechnikov")},
        "gradient_to_input": {"jumprelu_ste_to_input": True},
        "threshold_lr_factor": {"threshold_lr_factor": 3.0, "initial_threshold": 0.05},
    },
    "p_anneal": {
        "root": {"sparsity_function": "Lp"},
        "continuous": {"n_sparsity_updates": "continuous", "anneal_start": 5, "anneal_end": 25},
    },
    "end_to_end": {
        "ce": {"loss_fn": "ce"},
        "with_error": {"reconstruction_weight": 0.5},
        "reconstruction": {"loss_fn": "reconstruction"},
    },
    "standard": {"kl": {"loss_fn": "kl"}},
    "temporal": {
        "untied": {"tied": False, "n_layers": 2, "n_heads": 2},
        "rectifier": {"k": None, "sparsity_penalty": 0.1},
        "normalized": {"normalize": "unit_mean_square", "ema_decay": 0.9},
    },
}
"""Variants that belong to one trainer."""
FACTS: dict[str, Figures] = {
    "third_party/qwen_scope": {"k": 4},
    "third_party/llama_scope_r1": {"scale": 0.75},
}
"""What files of other packages do not hold."""


# Adapters: what is not public, or may come in another form later. Each has a fallback.


def loaded(path: str | os.PathLike, **facts: Any) -> tuple[Any, Mapping[str, Any]]:
    """Returns a dictionary and its config, whether they come as a pair or as one object."""
    found = dl.load_dictionary(path, **facts)
    return found if isinstance(found, tuple) else (found, getattr(found, "config", None) or {})


def recipes() -> Mapping[str, Callable[..., Any]]:
    """Returns the recipes by name."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("dictionary_learning.trainers.recipes").RECIPES
    return trainers.RECIPES  # pyright: ignore[reportAttributeAccessIssue]


def options_of(dictionary: Any) -> Mapping[str, Any]:
    """Returns the options of a dictionary, whether they are given by a method or held."""
    found: Any = getattr(dictionary, "options", {})
    found = found() if callable(found) else found
    return found if isinstance(found, Mapping) else found.to_dict()


def dense(latents: Any) -> Tensor:
    """Returns latents as a dense tensor, whatever their form."""
    if isinstance(latents, Tensor):
        return latents
    if hasattr(latents, "to_dense"):
        return latents.to_dense()
    return importlib.import_module("dictionary_learning.latents").to_dense(latents)


def set_fast_products(fast: bool) -> bool:
    """Decides whether bfloat16 products count as fast; tells if it could. Otherwise it is timed."""
    try:
        hardware: Any = importlib.import_module("dictionary_learning._hardware")
        assert callable(hardware._seconds)
        hardware._seconds = lambda dtype: 1.0 if fast and dtype == torch.bfloat16 else 2.0
        hardware.bfloat16_is_fast.cache_clear()
        return hardware.bfloat16_is_fast("cpu") is fast
    except (ImportError, AttributeError, AssertionError):
        return False


def digest(*values: Any) -> str:
    """Returns the first digits of a hash of tensors, with their types and shapes, and of text."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            data = value.detach().cpu().contiguous().reshape(-1)
            found.update(data.view(torch.uint8).numpy().tobytes())
        else:
            found.update(str(value).encode())
    return found.hexdigest()[:16]


def flat(value: Any, name: str = "") -> Figures:
    """Returns plain data with a field for each number; long lists and tensors are digests."""
    if isinstance(value, Mapping):
        parts = [flat(v, f"{name}.{key}" if name else str(key)) for key, v in value.items()]
        return {key: found for part in parts for key, found in part.items()}
    if isinstance(value, (list, tuple)):
        if len(value) > 8:
            return {name: digest(json.dumps([flat(item) for item in value]))}
        parts = [flat(item, f"{name}.{n}") for n, item in enumerate(value)]
        return {key: found for part in parts for key, found in part.items()}
    if isinstance(value, Tensor):
        return {name: digest(value)}
    if isinstance(value, float):
        return {name: value.hex()}
    return {name: value if value is None or isinstance(value, (bool, int)) else str(value)}


def attempt(function: Callable[[], Any]) -> Any:
    """Returns what a function gives, as a digest, or which exception it raises."""
    try:
        return digest(*map(dense, _listed(function())))
    except Exception as error:  # noqa: BLE001  (that it raises is what is recorded)
        return f"raises {type(error).__name__}"


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


@torch.no_grad()
def state_of(dictionary: Any, x: Tensor | None = None) -> Figures:
    """Returns figures of a dictionary: its class, options and tensors, and what it makes of x."""
    tensors = sorted(dictionary.state_dict().items())
    figures = {
        "class": type(dictionary).__name__,
        "state": digest(*itertools.chain(*tensors)),
        "state without names": digest(*sorted(digest(tensor) for _, tensor in tensors)),
        **flat(dict(tensors), "tensor"),
        **flat(options_of(dictionary), "options"),
    }
    if x is not None:
        figures["latents"] = attempt(lambda: dictionary.encode(x))
        figures["reconstruction"] = attempt(lambda: dictionary(x))
    return figures


class Log:
    """Takes the figures of a run."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], list[float]] = {}
        self.tokens: list[tuple[int, int]] = []

    def log(self, figures: Mapping[str, Mapping[str, float]], step: int, tokens: int) -> None:
        """Takes the figures of a step."""
        self.tokens.append((step, tokens))
        for name, values in figures.items():
            for figure, value in values.items():
                self.seen.setdefault((name, figure), []).append(value)

    def close(self) -> None:
        """Does nothing."""

    def figures(self) -> Figures:
        """Returns a digest of each figure's values, and the last of each loss."""
        names = list(dict.fromkeys(name for name, _ in self.seen))
        found: Figures = {"steps": digest(self.tokens), "names": ", ".join(names)}
        for (name, figure), values in self.seen.items():
            field = f"{name} {figure}" if len(names) > 1 else figure
            found[f"log.{field}"] = digest(*(value.hex() for value in values))
            if figure == "loss":
                found[f"last.{field}"] = repr(values[-1])
        return found


def train(
    data: Any,
    options: Any,
    held_out: Tensor | None = None,
    steps: int = STEPS,
    **arguments: Any,
) -> Figures:
    """Trains, and returns figures of the run and of the finished dictionaries."""
    log = Log()
    settings = {"loggers": [log], "log_steps": 1, "progress": False, "device": "cpu", **arguments}
    made = dl.trainSAE(data, options, steps, **settings)
    figures = log.figures()
    for n, dictionary in enumerate(made):
        prefix = f"{n}." if len(made) > 1 else ""
        found = state_of(dictionary, held_out)
        figures |= {f"{prefix}{name}": value for name, value in found.items()}
    return figures


def activations(wiring: str = "autoencoder", n: int = STEPS) -> list[dict[str, Tensor]]:
    """Returns batches of functions of the same planted features, of another scale at each site."""
    data, generator = tiny.Planted(DIM), torch.Generator().manual_seed(1)
    sites, maps = SITES[wiring], {}
    for number, site in enumerate(sites, 1):
        width = OUTPUT_DIM if site.endswith(":out") and len(sites) > 1 else DIM
        maps[site] = torch.randn(DIM, width, generator=generator) * number / DIM**0.5
    return [{site: x @ matrix for site, matrix in maps.items()} for x in data.batches(n, TOKENS)]


def plain(n: int = STEPS) -> list[Tensor]:
    """Returns batches of one site, without its name."""
    return list(tiny.Planted(DIM).batches(n, TOKENS))


def read_by(wiring: str, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns what a dictionary of a wiring reads."""
    reads = [x for site, x in batch.items() if site.endswith(":in") or "transcoder" not in wiring]
    return torch.cat(reads, dim=1)


@functools.cache
def model() -> Any:
    """Returns the language model."""
    return dl.load_model(tiny.model("llama"), tokenizer=tiny.tokenizer())


@functools.cache
def model_of_characters() -> Any:
    """Returns the language model with a tokenizer of characters, for text in English."""
    letters = [chr(n) for n in range(32, 32 + tiny.VOCAB - 3)]
    special = {"<s>": 0, "</s>": 1, "<pad>": 2}
    vocabulary = {**special, **{letter: n for n, letter in enumerate(letters, 3)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    names = dict(zip(("bos_token", "eos_token", "pad_token"), special, strict=True))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    return dl.load_model(tiny.model("llama"), tokenizer=wrapped)


def contexts(wiring: str = "autoencoder", **options: Any) -> Any:
    """Returns a stream of contexts with the sites of a wiring."""
    modules, io = MODULES[wiring]
    settings = {"io": io, "ctx_len": 16, "batch_size": 4, **options}
    return dl.ContextStream(tiny.documents(120), model(), modules, **settings)


def buffer(submodule: Any = LAYER, data: Any = None, on: Any = None, **options: Any) -> Any:
    """Returns a small buffer."""
    sizes = {"n_ctxs": 16, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 20}
    data = tiny.documents(40) if data is None else data
    return dl.ActivationBuffer(data, on or model(), submodule, **{**sizes, **options})


def served(source: Any, n: int = 40) -> Figures:
    """Returns figures of the first batches of a source."""
    batches = [x if isinstance(x, Tensor) else dict(x) for x in itertools.islice(source, n)]
    each = [x if isinstance(x, Mapping) else {"": x} for x in batches]
    figures = {"n": len(batches), "sites": ", ".join(map(str, each[0]))}
    for site in each[0]:
        figures[f"rows.{site}"] = digest(*(batch[site] for batch in each))
    config = dict(getattr(source, "config", {}))
    for place in ("source", "cache"):
        config.pop(place, None)
    source.close()
    return {**figures, **flat(config, "config")}


def environment() -> Iterator[Case]:
    """Yields what two records must have in common."""

    def figures() -> Figures:
        weights = sorted(tiny.model("llama").state_dict().items())
        return {
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "bfloat16 products are set": set_fast_products(True),
            "model": digest(*itertools.chain(*weights)),
            "text": digest(*tiny.documents(40)),
            "activations": digest(*plain(2)),
            "backends": ", ".join(ops.available()),
        }

    yield "environment", figures


def settings_of(trainer: str, wiring: str = "autoencoder") -> Figures:
    """Returns the settings of a trainer in the cases with a wiring."""
    settings = {"trainer": trainer, **METHODS.get(trainer, SELECTING)}
    if wiring in ("heads", "cross_layer_transcoder") and trainer != "temporal":
        settings |= {"k": 2} if trainer not in METHODS else {}
        settings |= {"n_heads": HEADS} if wiring == "heads" else {}
    return settings if wiring == "autoencoder" else {**settings, "wiring": wiring}


def run(
    trainer: str,
    wiring: str,
    changes: Mapping[str, Any] = MappingProxyType({}),
    backend: str | None = None,
) -> Figures:
    """Returns figures of a trainer with a wiring, and with some settings changed."""
    options = {**settings_of(trainer, wiring), **changes}
    with ops.use_backend(backend):
        if trainer in CONTEXTS or changes.get("loss_fn") == "kl":
            return train(contexts(wiring, predict=trainer != "temporal"), options)
        *batches, held_out = activations(wiring, STEPS + 1)
        return train(batches, options, read_by(wiring, held_out))


def training() -> Iterator[Case]:
    """Yields every trainer with every wiring and every backend but Triton's."""
    backends = [None, *(name for name in ops.available() if name != "triton")]
    pairs = itertools.product(trainers.TRAINERS, dictionaries.WIRINGS)
    for (trainer, wiring), backend in itertools.product(pairs, backends):
        case = functools.partial(run, trainer, wiring, backend=backend)
        yield f"train/{trainer}/{wiring}/{backend}", case


def interpreted() -> Iterator[Case]:
    """Yields runs with Triton's kernels, which its interpreter makes slow."""
    data = [x[:8] for x in plain(3)]
    for trainer in ("top_k", "batch_top_k", "matryoshka_batch_top_k", "group_max", "abs_top_k"):

        def figures(trainer: str = trainer) -> Figures:
            options = {**settings_of(trainer), "k": 2, "dict_size": 256}
            with ops.use_backend("triton"):
                return train(data[:2], options, data[2], steps=2)

        yield f"triton/{trainer}", figures


def float32_products() -> Iterator[Case]:
    """Yields runs as on a machine on which bfloat16 is not fast."""
    for trainer in (name for name in trainers.TRAINERS if name not in CONTEXTS):

        def figures(trainer: str = trainer) -> Figures:
            set_fast_products(False)
            try:
                return run(trainer, "autoencoder")
            finally:
                set_fast_products(True)

        yield f"float32_products/{trainer}", figures


def optimizers() -> dict[str, Figures]:
    """Returns a variant for each optimizer that is there."""
    absent = {"adam_8bit"} if importlib.util.find_spec("bitsandbytes") is None else set()
    found = {
        f"optimizer={name}": {
            "optimizer": name,
            **({"schedule": "constant"} if "free" in name else {}),
        }
        for name in trainers.OPTIMIZERS
        if name not in absent
    }
    return {**found, "optimizer of PyTorch": {"optimizer": torch.optim.AdamW}}


def variants() -> Iterator[Case]:
    """Yields single settings changed, each with several trainers."""
    common = {**VARIANTS, **optimizers()}
    tried = [(trainer, "autoencoder", name, common[name]) for trainer in VARIED for name in common]
    for trainer, own in OWN_VARIANTS.items():
        tried += [(trainer, "autoencoder", name, changes) for name, changes in own.items()]
    others = [wiring for wiring in dictionaries.WIRINGS if wiring != "autoencoder"]
    for trainer, wiring, name in itertools.product(WIRED, others, WIRED_VARIANTS):
        tried.append((trainer, wiring, name, VARIANTS[name]))
    for trainer, wiring, name, changes in tried:
        case = functools.partial(run, trainer, wiring, changes)
        yield f"variant/{trainer}/{wiring}/{name}", case


def arguments() -> Iterator[Case]:
    """Yields what `trainSAE` itself is told, and data of other kinds."""
    *batches, held_out = plain(STEPS + 1)
    broken = [x.clone() for x in batches]
    for n, x in enumerate(broken):
        x[n % TOKENS, n % DIM] = torch.nan
        x[(n + 7) % TOKENS] = torch.inf if n % 3 == 0 else x[(n + 7) % TOKENS]
    for trainer in VARIED:
        options = settings_of(trainer)
        k = {"k": 2} if "k" in options else {}
        cases = {
            "autocast": (batches, options, {"autocast_dtype": torch.bfloat16}),
            "normalized": (batches, options, {"normalize_activations": True}),
            "broken": (broken, options, {}),
            "half": ([x.half() for x in batches], options, {}),
            "ends early": (batches[:12], options, {}),
            "heads apart": (
                [x.unflatten(1, (HEADS, -1)) for x in batches],
                {**options, **k},
                {"activations_split_by_head": True},
            ),
            "pairs": (
                [torch.stack([x, 2 * x], dim=1) for x in batches],
                options,
                {"transcoder": True},
            ),
            "two sites": (activations("crosscoder"), options, {}),
            "one of the sites": (activations("crosscoder"), {**options, "site": "m.1:out"}, {}),
            "two dictionaries": (batches, [options, {**options, "seed": 3}], {}),
        }
        for name, (data, given, settings) in cases.items():
            x = held_out if isinstance(data[0], Tensor) else None
            call = functools.partial(train, data, given, x, **settings)
            yield f"argument/{trainer}/{name}", call


@functools.cache
def folder() -> Path:
    """Returns a folder that is there as long as the script runs."""
    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


@functools.cache
def beginning(trainer: str, wiring: str = "autoencoder") -> Any:
    """Returns the place of a dictionary that was trained for a few steps, and saved."""
    place = folder() / f"{trainer}-{wiring}"
    options = settings_of(trainer, wiring)
    if wiring == "autoencoder":
        options |= {"unit_norm_decoder": False}  # norms that are not 1 tell more
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = activations(wiring, 10)
        dl.trainSAE(data, options, 10, save_dir=place, progress=False, device="cpu")
    return place / "trainer_0"


def finetuning() -> Iterator[Case]:
    """Yields runs that begin with a saved dictionary."""
    sizes: dict[str, Figures] = {"same": {}, "wider": {"dict_size": 2 * LATENTS}}
    pairs = [(end, start, "autoencoder") for end in VARIED for start in VARIED]
    pairs += [("top_k", "top_k", wiring) for wiring in dictionaries.WIRINGS]
    cases = itertools.product(dict.fromkeys(pairs), sizes.items())
    for (end, start, wiring), (size, change) in cases:

        def figures(
            end: str = end,
            start: str = start,
            wiring: str = wiring,
            change: Figures = change,
        ) -> Figures:
            options = settings_of(end, wiring)
            del options["dict_size"]
            options |= {"finetune": str(beginning(start, wiring)), **change}
            *batches, held_out = activations(wiring, 11)
            return train(batches, options, read_by(wiring, held_out), steps=10)

        yield f"finetune/{end}/of {start}/{wiring}/{size}", figures


def saving() -> Iterator[Case]:
    """Yields what runs write, without the versions and the times in it."""
    for trainer in trainers.TRAINERS:

        def figures(trainer: str = trainer) -> Figures:
            place = folder() / f"saved-{trainer}"
            data = contexts(predict=trainer == "end_to_end") if trainer in CONTEXTS else plain(6)
            extra = {"save_steps": (2,), "backup_steps": 4, "run_cfg": {"note": 1}}
            options = settings_of(trainer)
            dl.trainSAE(data, options, 6, save_dir=place, progress=False, device="cpu", **extra)
            files = sorted(p for p in place.rglob("*") if p.is_file())
            found: Figures = {"files": ", ".join(str(p.relative_to(place)) for p in files)}
            for path in files:
                name = str(path.relative_to(place))
                if path.suffix == ".safetensors":
                    found[name] = digest(*itertools.chain(*sorted(load_file(path).items())))
            config = json.loads((place / "trainer_0" / "config.json").read_text())
            config.pop("versions", None)
            return {**found, **flat(config, "config")}

        yield f"saved/{trainer}", figures


def published() -> Iterator[Case]:
    """Yields the configs of recipes, and runs with them and with the configs of trainers."""
    for name in recipes():

        def figures(name: str = name) -> Figures:
            config = recipes()[name]()
            return {"class": type(config).__qualname__, **flat(config.to_dict())}

        yield f"recipe/{name}", figures

        def followed(name: str = name) -> Figures:
            wanted = recipes()[name]().to_dict()
            k = {"k": 4} if "k" in wanted else {}
            config = recipes()[name](dict_size=LATENTS, **k)
            wiring = wanted.get("wiring") or "autoencoder"
            needs_contexts = name in ("braun_2024", "lubana_2025")
            return train(contexts() if needs_contexts else activations(wiring, 5), config, steps=5)

        yield f"recipe followed/{name}", followed
    for trainer in trainers.TRAINERS:

        def typed(trainer: str = trainer) -> Figures:
            options = settings_of(trainer)
            data = contexts() if trainer in CONTEXTS else plain(5)
            return train(data, trainers.TRAINERS[options.pop("trainer")].Config(**options), steps=5)

        yield f"typed/{trainer}", typed


def golden() -> Iterator[Case]:
    """Yields the dictionaries of other packages."""
    fixtures = ROOT / "tests" / "fixtures"
    for path in sorted((fixtures / "io").rglob("*.safetensors")):
        name = path.relative_to(fixtures / "io").with_suffix("").as_posix()

        @torch.no_grad()
        def figures(path: Path = path, name: str = name) -> Figures:
            given = load_file(path)
            if "temporal" in name:
                given = {key: x.reshape(2, 16, -1) for key, x in given.items()}
            dictionary, config = loaded(fixtures / name, **FACTS.get(name, {}))
            x = given["x"]
            found = {**state_of(dictionary, x), "format": config.get("format")}
            if "x_edge" in given:
                edge = given["x_edge"]
                found["latents of edges"] = attempt(lambda: dictionary.encode(edge))
            for flag in (True, False) if "TopK" in found["class"] else ():
                call = functools.partial(dictionary.encode, x, use_threshold=flag)
                found[f"latents, use_threshold={flag}"] = attempt(call)
            found["with features"] = attempt(lambda: dictionary(x, output_features=True))
            if "temporal" in name:
                found["predicted"] = attempt(lambda: dictionary.encode_with_predictions(x))
            folded = copy.deepcopy(dictionary)
            found["folding"] = attempt(lambda: dl.fold_decoder_norm_(folded) or [])
            after = {"latents": lambda: folded.encode(x), "reconstruction": lambda: folded(x)}
            return {**found, **{f"folded {key}": attempt(call) for key, call in after.items()}}

        yield f"golden/{name}", figures


def sources() -> Iterator[Case]:
    """Yields the batches of buffers, caches, mixtures and contexts."""
    layers = [f"model.layers.{n}" for n in range(3)]
    sites = [LAYER, f"{LAYER}.mlp:in"]
    speech = {"data": str(ROOT / "demo" / "sotu.jsonl.zst"), "on": model_of_characters()}
    buffers: dict[str, Figures] = {
        "one site": {},
        "several sites": {"submodule": layers},
        "patterns": {"submodule": "model.layers.*.mlp", "io": "in_and_out"},
        "pairs": {"submodule": f"{LAYER}.mlp", "io": "in_and_out"},
        "heads": {"io": "heads"},
        "prefetch=0": {"submodule": sites, "prefetch": 0},
        "prefetch=1": {"submodule": sites, "prefetch": 1},
        "prefetch=2, repeat": {"prefetch": 2, "end_of_data": "repeat"},
        "repeat": {"submodule": sites, "end_of_data": "repeat"},
        "int8": {"submodule": sites, "dtype": "int8"},
        "bfloat16": {"dtype": "bfloat16"},
        "padded": {"pack": False},
        "with BOS": {"remove_bos": False},
        "no special tokens": {"add_special_tokens": False},
        "norms": {"submodule": sites, "max_activation_norm_multiple": 1.1},
        "all norms": {"max_activation_norm_multiple": None},
        "positions": {"seqpos_slice": (2, 14, 3)},
        "seed": {"seed": 1},
        "speeches": speech,
        "speeches, prefetch": {**speech, "submodule": layers, "prefetch": 1},
        "speeches, padded": {**speech, "pack": False},
    }
    for name, options in buffers.items():
        yield f"buffer/{name}", lambda options=options: served(buffer(**options))

    def resumed() -> Figures:
        first, second = (buffer(sites, end_of_data="repeat") for _ in range(2))
        for _ in range(13):
            next(first)
        second.load_state_dict(first.state_dict())
        return served(second)

    yield "buffer/resumed", resumed

    def sampled() -> Figures:
        held = buffer(sites)
        return {**flat(held.sample(30), "sample"), **served(held)}

    yield "buffer/sampled", sampled
    yield from caches(sites)
    for name, weights in {"equal": None, "weighted": (1, 3)}.items():

        def mixed(weights: Any = weights) -> Figures:
            parts = [buffer(sites), buffer(sites, tiny.documents(40, seed=3), seed=5)]
            return served(dl.ActivationMixture(parts, weights, out_batch_size=24))

        yield f"mixture/{name}", mixed
    for wiring in MODULES:
        yield f"contexts/{wiring}", lambda wiring=wiring: served(contexts(wiring), 10)

    def lost() -> Figures:
        batches = list(itertools.islice(contexts(), 5))
        told = [batch.model_loss_fn({site: 0.9 * x for site, x in batch.items()}) for batch in batches]
        lengths = [batch.lengths for batch in batches]
        return {"lengths": digest(*lengths), **flat(told, "lost")}

    yield "contexts/lost", lost


def caches(sites: list[str]) -> Iterator[Case]:
    """Yields what is written to disk, and what is read of it."""
    kinds: dict[str, Figures] = {
        "float32": {},
        "int8": {"dtype": "int8"},
        "compressed": {"compression": "zstd", "dtype": "float16"},
        "prefetch": {"prefetch": 1, "n_tokens": 300},
        "padded": {"pack": False, "max_activation_norm_multiple": 1.1},
    }
    readings: dict[str, Figures] = {
        "shuffled": {},
        "in order": {"seed": None},
        "repeated": {"end_of_data": "repeat", "window": 2},
        "one site": {"submodule": sites[0]},
    }
    for kind, options in kinds.items():

        def figures(kind: str = kind, options: Figures = options) -> Figures:
            place = folder() / f"cache-{kind}"
            sizes = {"ctx_len": 16, "refresh_batch_size": 4, "shard_size": 100}
            dl.write_cache(place, tiny.documents(60), model(), sites, **{**sizes, **options})
            shards = sorted(p for p in place.iterdir() if p.suffix != ".json")
            found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in shards}
            for name, reading in readings.items():
                cache = dl.ActivationCache(place, out_batch_size=30, **reading)
                found |= {f"{name} {key}": value for key, value in served(cache).items()}
            return found

        yield f"cache/{kind}", figures


TRAINED = {
    **{name: (name, "autoencoder") for name in VARIED},
    "standard_april_update": ("standard_april_update", "autoencoder"),
    "group_max": ("group_max", "autoencoder"),
    "abs_top_k": ("abs_top_k", "autoencoder"),
    "matching_pursuit": ("matching_pursuit", "autoencoder"),
    "skip_transcoder": ("standard", "skip_transcoder"),
    "crosscoder": ("batch_top_k", "crosscoder"),
    "cross_layer_transcoder": ("jump_relu", "cross_layer_transcoder"),
    "heads": ("top_k", "heads"),
}
"""What is done to finished dictionaries is done to these."""


def afterwards() -> Iterator[Case]:
    """Yields what is made of finished dictionaries: thresholds, folding, copies, other formats."""
    changes: dict[str, Callable[[Any, Tensor], Any]] = {
        "as it is": lambda d, x: d,
        "calibrated": lambda d, x: dl.calibrate(d, x.split(50), len(x)),
        "calibrated to 3": lambda d, x: dl.calibrate(d, x.split(50), len(x), target_l0=3),
        "calibrated, firing": lambda d, x: dl.calibrate(d, [x], len(x), match="firing"),
        "folded": lambda d, x: dl.fold_decoder_norm_(d) or d,
        "scaled": lambda d, x: d.scale_(2.0) or d,
        "bfloat16": lambda d, x: d.bfloat16(),
        "wider": lambda d, x: dl.expand_or_convert(d, expansion=1.5),
        "as relu": lambda d, x: dl.expand_or_convert(d, nonlinearity={"name": "relu"}),
        "as top_k": lambda d, x: dl.expand_or_convert(d, nonlinearity={"name": "top_k", "k": 3}),
        "as jump_relu": lambda d, x: dl.expand_or_convert(d, nonlinearity={"name": "jump_relu"}),
    }
    for (kind, trained), (name, change) in itertools.product(TRAINED.items(), changes.items()):

        def figures(trained: Any = trained, change: Any = change) -> Figures:
            dictionary, _ = loaded(beginning(*trained))
            x = torch.cat([read_by(trained[1], batch) for batch in activations(trained[1], 4)])
            with torch.no_grad():
                return state_of(change(dictionary, x), x)

        yield f"finished/{kind}/{name}", figures
    formats = ("own", "dictionary_learning", "sparsify", "sae_lens")
    for kind, to in itertools.product(TRAINED, formats):

        def written(kind: str = kind, to: str = to) -> Figures:
            dictionary, config = loaded(beginning(*TRAINED[kind]))
            place = dl.write_dictionary(dictionary, folder() / f"written-{kind}-{to}", to, config)
            x = read_by(TRAINED[kind][1], activations(TRAINED[kind][1], 1)[0])
            files = sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file())
            return {"files": ", ".join(files), **state_of(loaded(place)[0], x)}

        yield f"written/{kind}/{to}", written


def measuring() -> Iterator[Case]:
    """Yields figures of evaluations."""
    text = tiny.documents(30, seed=7)

    def report() -> Figures:
        data = buffer([LAYER, f"{LAYER}.mlp:in", f"{LAYER}.mlp:out"], end_of_data="repeat")
        one, mlp = (
            {"site": f"{LAYER}:out"},
            {"site": f"{LAYER}.mlp:in", "wiring": "skip_transcoder"},
        )
        configs = [settings_of("top_k"), settings_of("jump_relu"), settings_of("batch_top_k")]
        configs = [c | place for c, place in zip(configs, (one, one, mlp), strict=True)]
        made = dl.trainSAE(data, configs, STEPS, progress=False, device="cpu")
        site, reads, writes = data.sites
        places = [(site, None), (site, None), (reads, writes)]
        parts = enumerate(zip(made, places, strict=True))
        candidates = [dl.Candidate(str(n), d, *place) for n, (d, place) in parts]
        config = dl.EvaluationConfig(n_tokens=400, n_fidelity_tokens=300, ctx_len=16, batch_size=4)
        return flat(dl.evaluate_dictionaries(model(), candidates, text, config))

    yield "evaluate/three dictionaries", report
    for name in ("top_k", "jump_relu", "gated"):

        def single(name: str = name) -> Figures:
            data = buffer(end_of_data="repeat")
            options = settings_of(name)
            (dictionary,) = dl.trainSAE(data, options, 10, progress=False, device="cpu")
            found = flat(dl.evaluate(dictionary, buffer(), batch_size=4, n_batches=5), "buffer")
            by_batch = dl.evaluate(dictionary, buffer(), batch_size=4, normalize_batch=True)
            losses = dl.loss_recovered(text[:8], model(), LAYER, dictionary, max_len=16)
            return {**found, **flat(by_batch, "normalized"), **flat(losses, "losses")}

        yield f"evaluate/{name}", single


def operations() -> Iterator[Case]:
    """Yields gradient pursuit, the operations with a fast form, and synthetic activations."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, DIM, generator=generator)
    W = torch.nn.functional.normalize(torch.randn(128, DIM, generator=generator), dim=1)
    for name, options in {"all": {}, "candidates": {"candidates": 20}}.items():
        for n in (40, 5):  # the Gram matrix pays for many tokens only

            def pursued(n: int = n, options: Figures = options) -> Figures:
                return {"latents": digest(dense(dl.gradient_pursuit(x[:n], W, 6, **options)))}

            yield f"pursuit/{name}/{n} tokens", pursued
    encodes = ("topk_encode", "batch_topk_encode")
    for name, backend in itertools.product(encodes, (None, "reference", "sparse", "triton")):

        def computed(name: str = name, backend: str | None = backend) -> Figures:
            seeded = torch.Generator().manual_seed(2)
            shapes = {"x": (12, 16), "W": (256, 16), "b": (256,), "center": (16,)}
            given = {key: torch.randn(n, generator=seeded) for key, n in shapes.items()}
            for tensor in given.values():
                tensor.requires_grad_()
            with ops.use_backend(backend):
                encoder = ops.Encoder(given["W"], given["b"], given["center"])
                # the case has the operation's name of before: records of older revisions have it
                encode = encoder.backend.top_k if name == "topk_encode" else encoder.backend.batch_top_k
                kept = encode(given["x"], encoder, 2)
                made = encoder.backend.decode(kept, given["W"])
                made.sin().sum().backward()
            gradients = {f"gradient of {key}": t.grad for key, t in given.items()}
            return flat({"latents": dense(kept), "decoded": made, **gradients})

        yield f"ops/{name}/{backend}", computed

    def known() -> Figures:
        tree: Figures = {"n_roots": 4, "branching": 2, "depth": 2, "correlation_rank": 4}
        config = synthetic.SyntheticConfig(n_features=64, activation_dim=16, batch_size=64, **tree)
        source = synthetic.SyntheticActivations(config)
        batches = list(itertools.islice(source, 3))
        features = {"features": source.features, "sample": source.sample(20)}
        return {"batches": digest(*batches), **flat(features)}

    yield "synthetic", known


GROUPS = (
    environment,
    training,
    float32_products,
    variants,
    arguments,
    finetuning,
    saving,
    published,
    golden,
    sources,
    afterwards,
    measuring,
    operations,
    interpreted,
)


def record(only: Sequence[str]) -> dict[str, Figures]:
    """Returns the figures of all cases, or of those whose name fits a pattern."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    set_fast_products(True)
    found: dict[str, Figures] = {}
    raised: dict[str, list[str]] = {}
    for group in GROUPS:
        start, before = time.process_time(), len(found)
        for name, case in _cases(group):
            if only and not any(fnmatch.fnmatchcase(name, pattern) for pattern in only):
                continue
            assert name not in found, name
            torch.manual_seed(0)
            try:
                found[name] = case()
            except Exception as error:  # noqa: BLE001  (that it raises is what is recorded)
                found[name] = {"raises": type(error).__name__}
                raised.setdefault(f"{type(error).__name__}: {str(error)[:90]}", []).append(name)
        seconds = time.process_time() - start
        print(f"{group.__name__}: {len(found) - before} cases, {seconds:.1f} s", file=sys.stderr)
    for message, names in sorted(raised.items()):
        print(f"{len(names)} raise {message}\n    {', '.join(names[:4])}", file=sys.stderr)
    return found


def _cases(group: Callable[[], Iterator[Case]]) -> Iterator[Case]:
    """Yields the cases of a group, and, where it breaks off, one that says so."""
    try:
        yield from group()
    except Exception as error:  # noqa: BLE001  (the other groups are still recorded)
        figures = {"breaks off": type(error).__name__}
        yield f"group/{group.__name__}", lambda: figures


def compare(old: dict[str, Figures], new: dict[str, Figures], allowed: Sequence[str]) -> bool:
    """Prints every difference of two records; returns whether all of them are allowed."""
    n_refused = n_allowed = 0
    for case in dict.fromkeys((*old, *new)):
        if case not in old or case not in new:
            differences = {"case": ("there", "missing") if case in old else ("missing", "there")}
        else:
            a, b = old[case], new[case]
            fields = dict.fromkeys((*a, *b))
            pairs = {field: (a.get(field, "missing"), b.get(field, "missing")) for field in fields}
            differences = {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}
        for field, (before, after) in differences.items():
            is_allowed = any(fnmatch.fnmatchcase(f"{case} {field}", p) for p in allowed)
            n_allowed += is_allowed
            n_refused += not is_allowed
            mark = "allowed" if is_allowed else "DIFFERS"
            print(f"{mark}  {case}  {field}: {before} -> {after}")
    print(f"{len(old)} and {len(new)} cases; {n_refused} differences, and {n_allowed} allowed.")
    return not n_refused


def main() -> None:
    """Records, or compares two records."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.json")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD.json", "NEW.json"))
    parser.add_argument("--allow", nargs="+", action="extend", default=[], metavar="PATTERN")
    given = parser.parse_args()
    if given.compare:
        old, new = (json.loads(path.read_text()) for path in given.compare)
        sys.exit(not compare(old, new, given.allow))
    if given.out is None:
        parser.error("name the file to write, or two to --compare")
    found = record(given.only)
    given.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"{len(found)} cases in {given.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
