"""The model card of dictionaries on the hub, written from the report of their evaluation."""

import math
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


def read_report(path: Path) -> dict[str, Any]:
    """Returns the report in a file, or in the folder of a run."""
    return read_json(path / "report.json" if path.is_dir() else path)


def model_card(
    repository: str,
    *,
    report: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    site: str | None = None,
    format: str = "own",
) -> str:
    """Returns a `README.md`: YAML for the hub, a description, figures, and how to load.

    Args:
        repository: "owner/name".
        report: the report of an evaluation.
        config: what is known about a dictionary, where there is no report.
        site: the folder in the repository.
        format: the format of the files.
    """
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
                {"type": key, "name": label, "value": value}
                for key, (label, _) in _FIGURES.items()
                if (value := _figure(entry, key)) is not None
            ],
        }
        for entry in entries
    ]
    return {**values, **({"model-index": [{"name": title, "results": results}]} if results else {})}


def _table(entries: Sequence[Mapping[str, Any]]) -> str:
    labels = ["site", "class", "width", *(label for label, _ in _FIGURES.values())]
    rows = [labels, ["---"] * len(labels)]
    for entry in entries:
        figures = [_figure(entry, key) for key in _FIGURES]
        shown = ["-" if value is None else f"{value:.4g}" for value in figures]
        rows.append(
            [f"`{entry.get('site', '')}`", str(entry.get("class", "")), str(entry.get("dict_size", "")), *shown]
        )
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _figure(entry: Mapping[str, Any], key: str) -> float | None:
    metrics = entry.get("metrics")
    value = metrics.get(key) if isinstance(metrics, Mapping) else None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)
