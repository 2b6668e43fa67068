"""The model card of dictionaries on the hub, written from the report of their evaluation."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dictionary_learning.dictionaries import DictionaryInfo
from dictionary_learning.interop._safe import read_json

_FIGURES = {
    "fvu": ("FVU", "fraction of variance unexplained; lower is better"),
    "l0": ("L0", "mean number of non-zero latents of a token"),
    "frac_alive": ("alive", "fraction of latents that fired"),
    "ce_recovered_zero": ("CE recovered", "share of the loss of zero ablation that is avoided; higher is better"),
}


def model_card(
    repository: str,
    *,
    report: Mapping[str, Any] | str | os.PathLike | None = None,
    config: Mapping[str, Any] | None = None,
    site: str | None = None,
    format: str = "own",
) -> str:
    """Returns a `README.md`: YAML for the hub, a description, figures, and how to load.

    Args:
        repository: "owner/name".
        report: the report of an evaluation, its file, or the folder of the run.
        config: what is known about a dictionary, where there is no report.
        site: the folder in the repository.
        format: the format of the files.
    """
    if report is not None and not isinstance(report, Mapping):
        path = Path(report)
        report = read_json(path / "report.json" if path.is_dir() else path)
    report = report or {}
    entries = [entry for entry in report.get("dictionaries") or [] if isinstance(entry, Mapping)]
    data = report.get("data")
    data = data if isinstance(data, Mapping) else {}
    model = DictionaryInfo.from_config(report).model or DictionaryInfo.from_config(config or {}).model
    title, place = repository.rpartition("/")[2], f', site="{site}"' if site else ""
    of, n_tokens = f" of `{model}`" if model else "", data.get("n_tokens_scored")
    measured = f" Evaluated on {n_tokens:,} tokens of {data['source']}." if isinstance(n_tokens, int) else ""
    front = yaml.safe_dump(_front_matter(title, model, entries, data), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---",
        f"# {title}",
        f"Sparse dictionaries of the activations{of}, in files that run no code when they are loaded.{measured}",
    ]
    if entries:
        parts += [_table(entries), "\n".join(f"- **{name}**: {said}." for name, said in _FIGURES.values())]
    parts += [
        "## Loading",
        "```python\nfrom dictionary_learning import load_dictionary\n\n"
        f'dictionary = load_dictionary("{repository}"{place})\n```',
        f"The files are of the format `{format}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    title: str, model: str | None, entries: Sequence[Mapping[str, Any]], data: Mapping[str, Any]
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "library_name": "dictionary-learning",
        "tags": ["sparse-autoencoder", "dictionary-learning", "mechanistic-interpretability"],
    }
    # the hub refuses a base_model that is no repository
    if model is not None and "/" in model and not model.startswith(("/", ".")):
        values["base_model"] = model
    results = [
        {
            "task": {"type": "feature-extraction", "name": f"Reconstruction of {entry.get('site', 'activations')}"},
            "dataset": {"type": "text", "name": str(data.get("source", "held-out text"))},
            "metrics": [
                {"type": key, "name": _FIGURES[key][0], "value": value} for key, value in _figures(entry).items()
            ],
        }
        for entry in entries
    ]
    return {**values, **({"model-index": [{"name": title, "results": results}]} if results else {})}


def _table(entries: Sequence[Mapping[str, Any]]) -> str:
    labels = ["site", "class", "width", *(label for label, _ in _FIGURES.values())]
    rows = [labels, ["---"] * len(labels)]
    for entry in entries:
        figures = _figures(entry)
        shown = [f"{figures[key]:.4g}" if key in figures else "-" for key in _FIGURES]
        facts = [str(entry.get(key, "")) for key in ("site", "class", "dict_size")]
        rows.append([f"`{facts[0]}`", *facts[1:], *shown])
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _figures(entry: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures that the report has of a dictionary, and that are finite."""
    metrics = entry.get("metrics")
    found: dict[str, float] = {}
    for key in _FIGURES:
        value = metrics.get(key) if isinstance(metrics, Mapping) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[key] = float(value)
    return found
