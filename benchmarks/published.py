"""Published figures, and the command that would give them: for machines with a GPU and a network. Never run in CI.

python benchmarks/published.py                          # lists what there is
python benchmarks/published.py pythia-70m-top-k         # runs one, and prints what came out beside what was published
python benchmarks/published.py synth-sae-bench-batch-top-k --share 0.01    # on a hundredth of the data
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from dictionary_learning import trainSAE
from dictionary_learning.cli import main as command_line
from dictionary_learning.synthetic import SyntheticActivations, ground_truth, synth_sae_bench_16k

_PILE = "monology/pile-uncopyrighted"
_TINY = ["--ctx-len", "128", "--batch-size", "8192", "--dict-size", "4096", "--sites", "gpt_neox.layers.3"]
_SAEBENCH = ["--recipe", "saebench", "--batch-size", "2048", "--ctx-len", "1024", "--n-ctxs", "244"]


@dataclasses.dataclass(frozen=True)
class Published:
    """A published result."""

    source: str
    expected: dict[str, float]
    """Figures of our report, or of `GroundTruth`, with the published values."""
    n_tokens: int
    arguments: tuple[str, ...] = ()
    """Of `dictionary-learning train`, without the number of tokens."""
    trainer: dict[str, Any] | None = None
    """For SynthSAEBench: the trainer's config."""


PUBLISHED = {
    "pythia-70m-top-k": Published(
        "dictionary-learning's end-to-end test, 0.5 % tolerance; its variance explained is about the residual's own mean",
        {"frac_variance_explained": 0.9578, "cossim": 0.9479, "relative_reconstruction_bias": 0.9998, "ce_recovered_zero": 0.949},
        10_000_000,
        ("EleutherAI/pythia-70m-deduped", _PILE, *_TINY, "--k", "40"),
    ),
    "pythia-70m-l1": Published(
        "dictionary-learning's end-to-end test, 0.5 % tolerance",
        {"frac_variance_explained": 0.8994, "l0": 37.5, "cossim": 0.8791, "ce_recovered_zero": 0.8106},
        10_000_000,
        (
            "EleutherAI/pythia-70m-deduped", _PILE, *_TINY,
            "--trainer", "standard", "--sparsity-penalty", "2.0", "--lr", "3e-4",
        ),
    ),
    "gpt2-small-top-k": Published(
        "OpenAI v5 on resid_mid of layer 10, 128k latents, as measured with SAELens (jbloom)",
        {"frac_variance_explained": 0.8776, "l0": 32.0, "ce_recovered_zero": 0.9849, "kl": 0.1066},
        2_000_000_000,
        (
            "openai-community/gpt2", "Skylion007/openwebtext", "--sites", "transformer.h.10.ln_2:in", "--ctx-len", "64",
            "--batch-size", "131072", "--n-ctxs", "65536", "--recipe", "gao_2024", "--dict-size", "131072", "--k", "32",
        ),
    ),
    "gemma-2-2b-matryoshka": Published(
        "chanind's Matryoshka suite, layer 12, 32k latents, k 40, 750M tokens",
        {"frac_variance_explained": 0.726, "l0": 40.0},
        750_000_000,
        (
            "google/gemma-2-2b", _PILE, "--sites", "model.layers.12", "--trainer", "matryoshka_batch_top_k", "--dict-size",
            "32768", "--k", "40", "--batch-size", "4096", "--ctx-len", "1024", "--n-ctxs", "512",
            "--group-fractions", "0.00390625,0.01171875,0.046875,0.1875,0.75",
        ),
    ),
    "saebench-pythia-160m": Published(
        "SAEBench's baseline, layer 8, 4,096 latents, 500M tokens; published as plots (its variance explained has a known error)",
        {},
        500_000_000,
        ("EleutherAI/pythia-160m-deduped", _PILE, "--sites", "gpt_neox.layers.8", *_SAEBENCH, "--dict-size", "4096", "--k", "40"),
    ),
    "saebench-gemma-2-2b": Published(
        "SAEBench's baseline, layer 12, 16,384 latents, 500M tokens; published as plots (its variance explained has a known error)",
        {},
        500_000_000,
        ("google/gemma-2-2b", _PILE, "--sites", "model.layers.12", *_SAEBENCH, "--dict-size", "16384", "--k", "40"),
    ),
    "synth-sae-bench-batch-top-k": Published(
        "SynthSAEBench-16k v2 at L0 25, https://arxiv.org/abs/2602.14687",
        {"f1": 0.7316, "mcc": 0.7574, "uniqueness": 0.9837, "explained_variance": 0.7923},
        200_000_000,
        trainer={"trainer": "batch_top_k", "k": 25},
    ),
    "synth-sae-bench-matryoshka": Published(
        "SynthSAEBench-16k v2 at L0 25, https://arxiv.org/abs/2602.14687",
        {"f1": 0.8793, "mcc": 0.7927, "uniqueness": 0.9987, "explained_variance": 0.7792},
        200_000_000,
        trainer={"trainer": "matryoshka_batch_top_k", "k": 25},
    ),
    "synth-sae-bench-matching-pursuit": Published(
        "SynthSAEBench-16k v2 at L0 25, https://arxiv.org/abs/2602.14687",
        {"f1": 0.4464, "mcc": 0.693, "uniqueness": 0.8281, "explained_variance": 0.8351},
        200_000_000,
        trainer={"trainer": "matching_pursuit", "k": 25},
    ),
    "synth-sae-bench-jump-relu": Published(
        "SynthSAEBench-16k v2 at L0 25, https://arxiv.org/abs/2602.14687",
        {"f1": 0.7317, "mcc": 0.7527, "uniqueness": 0.9885, "explained_variance": 0.7951},
        200_000_000,
        trainer={"trainer": "jump_relu", "target_l0": 25.0, "normalize": "unit_mean_square", "bandwidth": 0.15, "lr": 3e-4},
    ),
}  # fmt: skip


def run(name: str, published: Published, share: float, save_dir: Path) -> dict[str, float]:
    """Trains, and returns the figures that came out."""
    n_tokens = int(published.n_tokens * share)
    if published.trainer is None:
        status = command_line(
            ["train", *published.arguments, "--n-tokens", str(n_tokens), "--save-dir", str(save_dir / name)]
        )
        if status:
            raise SystemExit(status)
        report = json.loads((save_dir / name / "report.json").read_text())
        return report["dictionaries"][0]["metrics"]
    data = SyntheticActivations(synth_sae_bench_16k())
    steps = n_tokens // data.config.batch_size
    (dictionary,) = trainSAE(data, {"dict_size": 4096, **published.trainer}, steps, save_dir=save_dir / name)
    return dataclasses.asdict(ground_truth(dictionary, data, n_tokens=500_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=list(PUBLISHED))
    parser.add_argument("--share", type=float, default=1.0, help="of the published number of tokens")
    parser.add_argument("--save-dir", type=Path, default=Path("runs/published"))
    arguments = parser.parse_args()
    if arguments.name is None:
        for name, published in PUBLISHED.items():
            print(
                f"{name}: {published.source}; {published.n_tokens / 1e6:g}M tokens; {published.expected or 'no figures'}"
            )
        return
    published = PUBLISHED[arguments.name]
    figures = run(arguments.name, published, arguments.share, arguments.save_dir)
    print(f"{arguments.name}: {published.source}")
    for key, value in figures.items():
        beside = f"   published {published.expected[key]:.4f}" if key in published.expected else ""
        print(f"  {key} {value:.4f}{beside}")


if __name__ == "__main__":
    main()
