"""What is saved at a place, as `info` shows it in a terminal: a table, and commands that go on."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning._shell_words import place as as_word, shown_command
from dictionary_learning._what_is import IN_PYTHON, checkpoint_steps, unfinished
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
    figures, of = _held_out_figures(run, found) or _figures_of(run, found)
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


def begun(run: Path) -> list[Described]:
    """Returns the dictionaries of a run that has begun, by its record; none without one."""
    record = _read(run / "run.json").get("run", {})
    steps, at = record.get("steps"), checkpoint_steps(run)
    found: list[Described] = []
    for name, settings in zip(record.get("names", ()), record.get("trainers", ()), strict=False):
        config = {key: settings.get(key) for key in ("site", "target_site")}
        trained = {"step": at[-1] if at else 0, "steps": steps}
        built = {"class": settings.get("dict_class") or settings.get("trainer_class")}
        built |= {key: settings.get(key) for key in ("activation_dim", "dict_size", "k")}
        config |= {"name": name, "trainer": settings, "trained": trained, "checkpoints": at, "finished": False}
        config["state"] = unfinished(run)
        found.append(Described(name, "", config, built))
    return found


def _sweep_of(run: Path) -> Path | None:
    """Returns the folder of the sweep, which a run may be a part of, that has its results."""
    return next((place for place in (run, run.parent) if (place / "results.json").is_file()), None)


def _held_out_figures(run: Path, found: Sequence[Described]) -> tuple[list[dict[str, float]], str] | None:
    """Returns what a report, or that of a sweep, says of each dictionary; None if there is none."""
    if (sweep := _sweep_of(run)) is not None:
        entries = [one for one in _read(sweep / "results.json").get("dictionaries", ()) if isinstance(one, Mapping)]
        by_folder = {sweep / str(one.get("folder")): one.get("figures") for one in entries}
        page = next(iter(sorted(sweep.glob("*.html"))), sweep / "results.json")
        return [_finite(by_folder.get(Path(one.folder))) for one in found], f"Figures are those of {page}"
    if (entries := _report_of(run, found)) is None:
        return None
    figures = [_finite(entries.get(one.name, {}).get("metrics")) for one in found]
    return figures, f"Figures are of held-out text: {run / 'report.html'}" if any(figures) else ""


def _report_of(run: Path, found: Sequence[Described]) -> dict[str, Mapping[str, Any]] | None:
    """Returns what a run's report says of its dictionaries, by name; None without one of these.

    A run that was made longer has that of an earlier step, until it is evaluated again.
    """
    entries = _read(run / "report.json").get("dictionaries")
    if not isinstance(entries, list):
        return None
    measured = [one for one in entries if isinstance(one, Mapping)]
    by_name = {str(one.get("name")): one for one in measured}
    if not by_name.keys() & {one.name for one in found} and len(measured) == len(found):
        # in another package's format they have the names of their folders, in the same order
        by_name = {one.name: entry for one, entry in zip(found, measured, strict=True)}
    pairs = [(by_name[one.name], one.config.get("trained")) for one in found if one.name in by_name]
    return None if any(_is_of_another_step(entry, trained) for entry, trained in pairs) else by_name


def _is_of_another_step(entry: Mapping[str, Any], trained: Any) -> bool:
    history = entry.get("history")
    step = history[-1].get("step") if isinstance(history, list) and history else None
    now = trained.get("step") if isinstance(trained, Mapping) else None
    return None not in (step, now) and step != now


def _figures_of(run: Path, found: Sequence[Described]) -> tuple[list[dict[str, float]], str]:
    """Returns figures of each dictionary as logged, and a sentence that says so."""
    from dictionary_learning.loggers import read_history

    figures: list[dict[str, float]] = []
    for one in found:
        log = (Path(one.folder).parent if one.folder else run) / "metrics.jsonl"
        lines = read_history(log, one.name) if log.is_file() else []
        figures.append(_finite(next((line for line in reversed(lines) if "fvu" in line), None)))
    return figures, "Figures are of the last training batch that was logged." if any(figures) else ""


def _finite(values: Any) -> dict[str, float]:
    held = values if isinstance(values, Mapping) else {}
    return {k: v for k in _FIGURES if isinstance(v := held.get(k), (int, float)) and math.isfinite(v)}


def _state(run: Path) -> list[str]:
    """Returns lines that say whether a run or sweep has ended, and how."""
    if (run / "sweep.json").is_file():
        return [unfinished(run) or "The sweep finished."]
    if (run.parent / "sweep.json").is_file() and (told := unfinished(run)):
        return [told]
    sessions = _read(run / "run.json").get("volatile", {}).get("sessions", [])
    if not sessions:
        return []
    last = sessions[-1]
    step = f"after step {last.get('last_step')}, {last.get('end')}"
    if last.get("outcome") == "finished":
        return [f"The run finished {step}."]
    unknown = f"It began {last.get('start')} and goes on, or was killed."
    ended = f"{last['outcome']} {step}." if "outcome" in last else unknown
    at = checkpoint_steps(run)
    held = f"Checkpoints: after step {', '.join(map(str, at))}." if at else "It has no checkpoint."
    return [ended, held, *([] if _read(run / "run.json").get("command") else [IN_PYTHON])]


def _commands(place: str, run: Path, found: Sequence[Described]) -> list[str]:
    """Returns the commands that go on from here."""
    from dictionary_learning._trained_on import model_of, text_of
    from dictionary_learning.cli._trust import said_again

    record = _read(run / "run.json")
    sessions, command = record.get("volatile", {}).get("sessions", []), record.get("command")
    lines: list[list[str]] = []
    if sessions and command and sessions[-1].get("outcome") != "finished" and command[0] == "train":
        lines.append([*command, "--save-dir", as_word(run), "--resume"])
    models, texts = [model_of(one.config) for one in found], [text_of(one.config) for one in found]
    asked = ["--model", "MODEL"] if None in models else []
    asked += ["--data", "DATA"] if None in texts else []
    model = None if None in models else next(iter(models), None)
    text = None if None in texts else next(iter(texts), None)
    asked += said_again(model and model.name, text)
    has_some, pages = any(one.folder for one in found), run / "latents"
    if has_some and _report_of(run, found) is None and _sweep_of(run) is None:
        lines.append(["evaluate", as_word(place), *asked])
    if has_some and not pages.is_dir():
        lines.append(["dashboard", as_word(place), *asked, "--save-dir", as_word(pages)])
    lines.append(["info", as_word(place), "--json"])
    return [shown_command(words) for words in lines]


def _read(path: Path) -> dict[str, Any]:
    """Returns the contents of a JSON file; nothing if there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
