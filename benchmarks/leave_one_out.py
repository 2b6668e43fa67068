"""Leave-one-out refinement against a higher threshold at the same L0, on known features or on a language model.

    python benchmarks/leave_one_out.py features FOLDER              # of `dictionary-learning benchmark synthetic`
    python benchmarks/leave_one_out.py model RUN --data TEXT        # of `dictionary-learning train`

Thresholds of both are found on the same tokens, and figures are of others. Prints a Markdown table.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dictionary_learning import ActivationBuffer, calibrate, leave_one_out, load_dictionary, load_model
from dictionary_learning.cli._candidates import candidates_of, load_saved
from dictionary_learning.dictionaries import Coder, Dictionary
from dictionary_learning.evaluation import EvaluationConfig, evaluate_dictionaries
from dictionary_learning.synthetic import SyntheticActivations, SyntheticConfig, ground_truth

SHARES = (0.85, 0.7, 0.55)
"""Shares of the latents that fire which stay."""
N_TOKENS = 20_000
"""Tokens to find thresholds on."""
N_HELD_OUT, N_PREDICTED = 16_384, 4_096
"""Tokens of a language model's text for the figures, and for the cross-entropy."""


def variants(dictionary: Dictionary, rows: list[Tensor]) -> Iterator[tuple[str, Dictionary]]:
    """Yields the dictionary as it is, refined, and with a higher threshold for as many latents."""
    n = sum(map(len, rows))
    fires = sum(int((dictionary.encode(part) != 0).sum()) for part in rows) / n
    yield "as trained", dictionary
    yield "refined, least error", leave_one_out(dictionary, rows, n)
    for share in SHARES:
        yield "refined", leave_one_out(dictionary, rows, n, target_l0=share * fires)
        if isinstance(dictionary, Coder) and dictionary.nonlinearity.is_masked_relu:
            yield "threshold", calibrate(dictionary, rows, n, target_l0=share * fires)


def on_features(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields the scores of every dictionary of a benchmark."""
    results = json.loads((folder / "results.json").read_text())
    features = SyntheticConfig.from_dict(results["benchmark"]["case"]["features"])
    for row in results["dictionaries"]:
        known = SyntheticActivations(features.replace(seed=row["factors"]["seed"]))
        rows = [next(iter(known)) for _ in range(-(-N_TOKENS // features.batch_size))]
        for way, made in variants(load_dictionary(folder / row["folder"]), rows):
            found = ground_truth(made, known)
            figures = {"L0": found.l0, "F1": found.f1, "MCC": found.mcc, "FVU": 1 - found.explained_variance}
            yield f"{row['name']}, {way}", figures


def on_model(run: Path, data: str, model_name: str | None) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields figures of every dictionary of a run, on text after what thresholds were found on."""
    saved = load_saved([str(run)])
    model = load_model(model_name or saved[0].dictionary.info.model or "")
    for candidate in candidates_of(saved, model):
        assert candidate.site is not None  # of what is saved it is found
        buffer = ActivationBuffer(data, model, candidate.site, ctx_len=256, n_ctxs=128, out_batch_size=2048)
        batches = iter(buffer)
        rows = [cast(Tensor, next(batches)).float() for _ in range(N_TOKENS // 2048)]
        made = dict(enumerate(variants(candidate.dictionary, rows)))
        ways = [candidate._replace(name=str(n), dictionary=one) for n, (_, one) in made.items()]
        held_out = EvaluationConfig(n_tokens=N_HELD_OUT, n_fidelity_tokens=N_PREDICTED, ctx_len=256)
        report = evaluate_dictionaries(model, ways, data, held_out, norm_limits=buffer.find_norm_limits())
        for (way, _), one in zip(made.values(), report.dictionaries, strict=True):
            yield f"{candidate.name}, {way}", {key: one.metrics[key] for key in ("l0", "fvu", "ce_increase", "kl")}


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["features", "model"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--model")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = on_features(given.folder) if given.what == "features" else on_model(given.folder, given.data, given.model)
    for number, (name, figures) in enumerate(found):
        if not number:
            print(f"| dictionary | {' | '.join(figures)} |\n|---|{'--:|' * len(figures)}")
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in figures.values())} |", flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
