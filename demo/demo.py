"""Trains four dictionaries at once on two sites of a real language model, reports on them, and
writes pages of their latents.

At most 5 minutes on 2 cores without a GPU, after the download of the model (93 MB). To expect, on
held-out text: see the table in docs/demo.md. Afterwards demo/interpret.py takes a latent apart.

    python demo/demo.py [--model NAME] [--data NAME] [--save-dir FOLDER] [--without-pages]
        [options of dictionary-learning train]
"""

import argparse
import sys
from pathlib import Path

from fetch_model import fetch_model

from dictionary_learning.cli import main

HERE = Path(__file__).parent
RESIDUAL, MLP = "model.layers.15:out", "model.layers.15.mlp:out"
SETTINGS = {
    "--n-tokens": ["200000"],
    "--expansion-factor": ["8"],
    "--k": ["32", "64"],
    "--n-eval-tokens": ["16384"],
    "--n-fidelity-tokens": ["6144"],
}
"""Options of the training, unless others are given."""
PAGES = "latents"
"""The folder of the pages, in that of the run."""


def demo() -> int:
    """Runs `dictionary-learning train` and `dashboard` with the demo's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="a language model instead of SmolLM2-135M-Instruct; --sites may have to go with it"
    )
    parser.add_argument("--data", help="text instead of the State of the Union addresses")
    parser.add_argument("--sites", nargs="+", help="sites to train on")
    parser.add_argument("--save-dir", default="runs/demo", help="where the results go")
    parser.add_argument("--without-pages", action="store_true", help="end with the report")
    known, rest = parser.parse_known_args()
    sites = known.sites or ([RESIDUAL, MLP] if known.model is None else [])
    model, data = known.model or str(fetch_model()), known.data or str(HERE / "sotu.jsonl.zst")
    given = {word.split("=")[0] for word in rest}
    failed = main(
        [
            "train",
            model,
            data,
            *(["--sites", *sites] if sites else []),
            *["--save-dir", known.save_dir, "--overwrite"],
            *(word for name, values in SETTINGS.items() if name not in given for word in (name, *values)),
            *rest,
        ]
    )
    if failed or known.without_pages or "--dry-run" in rest:
        return failed
    run = Path(known.save_dir)
    n_sites = len(sites) or 1
    # those at the first site, which are compared side by side; all of them would take twice as long
    shown = [str(run / f"trainer_{n}") for n in range(0, len(list(run.glob("trainer_*"))), n_sites)]
    return main(
        [
            *["dashboard", *shown, "--save-dir", str(run / PAGES)],
            *["--model", model, "--data", data, "--n-tokens", "20000"],
            *["--n-top", "8", "--n-quantiles", "3", "--per-quantile", "2", "--n-quiet", "2", "--map", "pca"],
        ]
    )


if __name__ == "__main__":
    sys.exit(demo())
