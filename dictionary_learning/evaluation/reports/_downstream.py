"""The tables of downstream evaluations, for every form of report."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dictionary_learning.config import Registry
from dictionary_learning.evaluation.downstream._splitting import few_texts
from dictionary_learning.evaluation.reports._contents import Cell, count, decimal, plus_minus, tenths

ROLES = {
    "dictionary": "",
    "random": "baseline",
    "pca": "baseline",
    "neurons": "baseline",
    "dense": "all of the model",
    "majority": "floor",
}
"""What stands behind a name."""
_TABLES: Registry[Callable[[Mapping[str, Any]], "list[DownstreamTable]"]] = Registry("downstream evaluation")


class DownstreamTable(NamedTuple):
    """A table with what it means; the first column has names."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Cell]]]
    """Name, what it is, and figures."""


def downstream_tables(report: Mapping[str, Any]) -> list[DownstreamTable]:
    """Returns the tables of what a report has."""
    held: Mapping[str, Any] = report.get("downstream") or {}
    found: list[DownstreamTable] = []
    for name, make in _TABLES.items():
        if held.get(name):
            found += make(held[name])
    return found


@_TABLES.register("probing")
def _probing(part: Mapping[str, Any]) -> list[DownstreamTable]:
    tasks: Sequence[Mapping[str, Any]] = part.get("tasks") or []
    note = (
        "Mean AUC of logistic regressions on k latents, principal components or neurons, chosen on the training texts. "
        "0.5 knows nothing. A figure says something of a dictionary only where it exceeds that of PCA and of the "
        "random dictionary."
    )
    tables = (
        [_by_k(f"Probing: mean of {len(tasks)} tasks", note, part.get("means") or [], "auc", "k")]
        if len(tasks) > 1
        else []
    )
    for task in tasks:
        of = f"{count(task.get('n_train'))} texts for training, {count(task.get('n_test'))} for the test; classes: "
        of += ", ".join(map(str, task.get("classes") or [])) + "."
        if task.get("n_cut"):
            of += f" {count(task['n_cut'])} texts were longer than the context, and cut."
        of += f" {told}" if (told := few_texts(task.get("name"), task.get("n_test") or 0)) else ""
        title = f"Probing: {task.get('name')}"
        tables.append(_by_k(title, of if tables else f"{note} {of}", task.get("scores") or [], "auc", "k"))
    return tables


@_TABLES.register("absorption")
def _absorption(part: Mapping[str, Any]) -> list[DownstreamTable]:
    note = (
        f"First letters of {count(part.get('n_words'))} words; {count(part.get('n_letters'))} letters count. Rate: "
        "words on which the letter's latents are silent and another one stands in. Fraction: the share that others "
        f"carry. Lower is better. {part.get('warning') or ''}"
    )
    columns = {"rate": decimal, "fraction": decimal, "n_main_latents": tenths}
    rows = [(*_named(one), _cells(one, columns)) for one in part.get("entries") or []]
    return [DownstreamTable("Absorption", note.strip(), ["rate", "fraction", "latents of a letter"], rows)]


@_TABLES.register("perturbation")
def _perturbation(part: Mapping[str, Any]) -> list[DownstreamTable]:
    note = (
        "Accuracy that ablating n latents of a class takes from its own probe, less what it takes from the probes of "
        f"other classes. Higher is better. {part.get('warning') or ''}"
    )
    return [
        _by_k(f"Targeted probe perturbation: {part.get('name')}", note.strip(), part.get("scores") or [], "tpp", "n")
    ]


@_TABLES.register("removal")
def _removal(part: Mapping[str, Any]) -> list[DownstreamTable]:
    note = (
        "Share of the accuracy lost to a spurious correlation that ablating n latents brings back. 1 is all, 0 none. "
        f"{part.get('warning') or ''}"
    )
    title = f"Spurious correlation removal: {part.get('name')}"
    return [_by_k(title, note.strip(), part.get("scores") or [], "scr", "n")]


@_TABLES.register("disentangling")
def _disentangling(part: Mapping[str, Any]) -> list[DownstreamTable]:
    scores = part.get("scores") or []
    names = ", ".join(map(str, part.get("attributes") or []))
    note = (
        f"Attributes ({names}) of {count(part.get('n_entities'))} entities, changed by n latents. Score: mean of cause "
        f"(the attribute changes) and isolation (no other does). {part.get('warning') or ''}"
    )
    tables = [_by_k("Disentangling", note.strip(), scores, "score", "n")]
    return tables + [_by_k(f"Disentangling: {key}", "", scores, key, "n") for key in ("cause", "isolation")]


@_TABLES.register("context")
def _context(part: Mapping[str, Any]) -> list[DownstreamTable]:
    note = (
        f"Share of the active latents of {count(part.get('n_tokens'))} tokens that stay active where only the last m "
        "tokens of the context are left; of all activations, the cosine. Neither way is better."
    )
    scores = [
        {**one, "metrics": {"kept": one["metrics"].get("kept", one["metrics"].get("cosine"))},
         "errors": {"kept": held.get("kept", held.get("cosine"))} if (held := one.get("errors")) else None}
        for one in part.get("scores") or []
    ]  # fmt: skip
    return [_by_k("Sensitivity to context", note, scores, "kept", "m")]


def _by_k(title: str, note: str, scores: Sequence[Mapping[str, Any]], metric: str, letter: str) -> DownstreamTable:
    """Returns a table with a row for each name, and a column for each number of latents."""
    ks = sorted({one["k"] for one in scores if one.get("k") is not None})
    has_whole = any(one.get("k") is None for one in scores)
    found: dict[tuple[str, str], dict[Any, Cell]] = {}
    for one in scores:
        row = found.setdefault(_named(one), {})
        row[one.get("k")] = _cells(one, {metric: decimal})[0]
    columns: list[Any] = [*ks, None] if has_whole else ks
    rows = [(*key, [row.get(k, Cell("", "")) for k in columns]) for key, row in found.items()]
    return DownstreamTable(title, note, [f"{letter} = {k}" for k in ks] + (["all"] if has_whole else []), rows)


def _cells(one: Mapping[str, Any], columns: Mapping[str, Any]) -> list[Cell]:
    held, errors = one.get("metrics") or {}, one.get("errors") or {}
    return [Cell(write(held.get(key)), _error(errors.get(key), write)) for key, write in columns.items()]


def _error(error: Mapping[str, Any] | None, write: Callable[[Any], str]) -> str:
    # of figures that are the same on all of the text
    is_zero = error is not None and error.get("standard_error") == 0
    return f" \u00b1 {write(0.0)}" if is_zero else plus_minus(error, write)


def _named(one: Mapping[str, Any]) -> tuple[str, str]:
    return str(one.get("name")), ROLES.get(str(one.get("role")), "")
