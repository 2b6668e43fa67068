"""What is saved at a place, as `info` shows it in a terminal: a table, and commands that go on."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning.cli._output import aligned
from dictionary_learning.dictionaries import Dictionary, DictionaryInfo
from dictionary_learning.dictionaries._info import site_names

_FIGURES = {"fvu": ("FVU", ".4f"), "l0": ("L0", ".1f"), "ce_recovered_zero": ("CE recovered (zero)", ".4f")}


class Described(NamedTuple):
    """A dictionary as its files describe it."""

    name: str
    folder: str
    """Where it is; of other packages' files, the place where it was looked for."""
    config: Mapping[str, Any]
    built_of: Mapping[str, Any]
    """Its class, and the arguments that build it."""


def built_of(dictionary: Dictionary) -> dict[str, Any]:
    """Returns the class of a dictionary, and the arguments that build it."""
    return {"class": type(dictionary).__name__, **dictionary.options()}


def described(place: str, found: Sequence[Described]) -> list[str]:
    """Returns lines on dictionaries: a table, what their figures are of, and commands."""
    run = _run_of(place)
    figures, of = _figures_of(run, found)
    shown = [name for name in _FIGURES if any(name in one for one in figures)]
    rows = [["dictionary", "class", "site", "size", "k", "step", *(_FIGURES[name][0] for name in shown), "folder"]]
    for one, values in zip(found, figures, strict=True):
        cells = [format(values[name], _FIGURES[name][1]) if name in values else "" for name in shown]
        rows.append([one.name, *_facts(one), *cells, one.folder])
    kept = [column for column in zip(*rows, strict=True) if any(column[1:])]
    lines = [*aligned(list(zip(*kept, strict=True))), *([of] if of else []), *_state(run)]
    return [*lines, *(f"  {command}" for command in _commands(place, run, found))]


def facts_of(facts: Mapping[str, Any]) -> list[str]:
    """Returns lines for what is no dictionary: a fact on each, those within others indented."""
    lines: list[str] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            lines += [f"{name}:", *(f"  {line}" for line in facts_of(value))]
        else:
            lines.append(f"{name}: {value if isinstance(value, str) else json.dumps(value, default=str)}")
    return lines


def _facts(one: Described) -> list[str]:
    """Returns class, site, sizes, k and step."""
    info, built, normalized = DictionaryInfo.from_config(one.config), one.built_of, ""
    while isinstance(built.get("dictionary"), Mapping):  # wrapped, as by a normalization
        normalized, built = f"{normalized}{built.get('class')} ", built["dictionary"]
    site = ", ".join(info.sites)
    if targets := site_names(one.config.get("target_site")):
        site += f" -> {', '.join(targets)}"
    widths = [built.get(name) for name in ("activation_dim", "dict_size")]
    size = " x ".join(str(width) for width in widths if width is not None)
    inner = built.get("nonlinearity")
    k = built.get("k", inner.get("k") if isinstance(inner, Mapping) else None)
    trained = one.config.get("trained")
    step = f"{trained.get('step')} of {trained.get('steps')}" if isinstance(trained, Mapping) else ""
    return [f"{normalized}{built.get('class', '')}", site, size, "" if k is None else str(k), step]


def _run_of(place: str) -> Path:
    """Returns the folder of the run: a dictionary's own place lies in it."""
    path = Path(place)
    path = path.parent if path.is_file() else path
    is_one = path.name.startswith("trainer_") and (path.parent / "run.json").is_file()
    return path.parent if is_one else path


def _figures_of(run: Path, found: Sequence[Described]) -> tuple[list[dict[str, float]], str]:
    """Returns figures of each dictionary, and a sentence that says what they are of."""
    entries = _read(run / "report.json").get("dictionaries")
    if isinstance(entries, list):
        measured = [one for one in entries if isinstance(one, Mapping)]
        by_name = {one.get("name"): one.get("metrics") for one in measured}
        if not by_name.keys() & {one.name for one in found} and len(measured) == len(found):
            # in another package's format they have the names of their folders, in the same order
            by_name = {one.name: entry.get("metrics") for one, entry in zip(found, measured, strict=True)}
        figures = [_finite(by_name.get(one.name)) for one in found]
        return figures, f"Figures are of held-out text: {run / 'report.html'}" if any(figures) else ""
    if not (run / "metrics.jsonl").is_file():
        return [{} for _ in found], ""
    from dictionary_learning.loggers import read_history

    history = [read_history(run / "metrics.jsonl", one.name) for one in found]
    figures = [_finite(next((line for line in reversed(lines) if "fvu" in line), None)) for lines in history]
    return figures, "Figures are of the last training batch that was logged." if any(figures) else ""


def _finite(values: Any) -> dict[str, float]:
    held = values if isinstance(values, Mapping) else {}
    return {k: v for k in _FIGURES if isinstance(v := held.get(k), (int, float)) and math.isfinite(v)}


def _state(run: Path) -> list[str]:
    """Returns a line that says whether a run has ended, and how."""
    sessions = _read(run / "run.json").get("volatile", {}).get("sessions", [])
    if not sessions:
        return []
    last = sessions[-1]
    if "outcome" not in last:
        return [f"The run that began {last.get('start')} goes on, or was killed."]
    step = f"after step {last.get('last_step')}, {last.get('end')}"
    return [f"The run finished {step}." if last["outcome"] == "finished" else f"{last['outcome']} {step}."]


def _commands(place: str, run: Path, found: Sequence[Described]) -> list[str]:
    """Returns the commands that go on from here."""
    from dictionary_learning._trained_on import model_of, text_of

    record, folder = _read(run / "run.json"), str(run)
    sessions, command = record.get("volatile", {}).get("sessions", []), record.get("command")
    lines: list[list[str]] = []
    if sessions and command and sessions[-1].get("outcome") != "finished" and command[0] == "train":
        lines.append([*command, "--save-dir", folder, "--resume"])
    asked: list[str] = []
    for option, known, value in (("--model", model_of, "MODEL"), ("--data", text_of, "DATA")):
        if any(known(one.config) is None for one in found):
            asked += [option, value]
    if not (run / "report.json").is_file():
        lines.append(["evaluate", place, *asked])
    pages = run / "latents"
    if not pages.is_dir():
        lines.append(["dashboard", place, *asked, "--save-dir", str(pages)])
    lines.append(["info", place, "--json"])
    return [shlex.join(["dictionary-learning", *words]) for words in lines]


def _read(path: Path) -> dict[str, Any]:
    """Returns the contents of a JSON file; nothing if there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
