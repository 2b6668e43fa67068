"""Downstream measures of saved dictionaries of one model, as a table in Markdown.

    python benchmarks/downstream.py MODEL RUN [RUN ...] --wheel sae_probes-0.4.2-py3-none-any.whl

Takes two tasks, small samples and one seed for each split, so that it ends in minutes on two cores.
"""

import argparse
import sys
from typing import Any

from dictionary_learning import load_model
from dictionary_learning.cli._candidates import candidates_of, load_saved
from dictionary_learning.evaluation.downstream import (
    AbsorptionConfig,
    ContextConfig,
    DownstreamReport,
    ProbingConfig,
    context_sensitivity,
    feature_absorption,
    probe_latents,
    sae_probes_tasks,
)
from dictionary_learning.evaluation.reports._as_markdown import render_markdown

TASKS = ("105_click_bait", "161_agnews_0")


def main() -> None:
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--text", help="for the sensitivity to context")
    parser.add_argument("--measures", nargs="+", default=["probing", "absorption"], help="and context")
    parser.add_argument("--n-train", type=int, default=300)
    parser.add_argument("--n-words", type=int, default=1_500)
    given = parser.parse_args()
    model = load_model(given.model)
    candidates = candidates_of(load_saved(given.runs), model)
    tasks = sae_probes_tasks(TASKS, path=given.wheel)
    config = ProbingConfig(ks=(1, 5, 16), n_train=given.n_train, n_test=200, ctx_len=64, strengths=(0.01, 1.0))
    parts: dict[str, Any] = {}
    if "probing" in given.measures:
        parts["probing"] = probe_latents(model, candidates, tasks, config)
    if "absorption" in given.measures:
        words = AbsorptionConfig(n_words=given.n_words, n_examples=1)
        parts["absorption"] = feature_absorption(model, candidates, config=words)
    if "context" in given.measures:
        parts["context"] = context_sensitivity(model, candidates, given.text, ContextConfig(n_tokens=200))
    report = DownstreamReport(**parts)
    sys.stdout.write(render_markdown({"title": "Downstream", "model": model.describe(), "downstream": report}))


if __name__ == "__main__":
    main()
