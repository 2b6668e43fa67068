"""What a report says in every form: numbers and sentences in words, and the tables of metrics."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

from dictionary_learning._plain import as_duration
from dictionary_learning.evaluation._bootstrap import FEW_DOCUMENTS
from dictionary_learning.evaluation._measured import ABLATIONS
from dictionary_learning.models import shown_name

Entries: TypeAlias = Sequence[Mapping[str, Any]]
"""The dictionaries of a report."""

DASH = "\u2014"

_FEW_OF_K = 0.6
"""Share of k below which L0 is worth a word: in training nearly all k latents fire."""
_SIMILAR_L0 = 1.5
"""Ratio of L0 up to which figures of reconstruction are compared."""


class Cell(NamedTuple):
    """A figure in a table, and its error bar."""

    text: str
    error: str = ""

    def __str__(self) -> str:
        return self.text + self.error


_SMALL = 5e-4  # four decimals would show no digit of such a value
_LARGE = 1e3


def finite(value: Any) -> float | None:
    """Returns the number, or None if it is missing or not finite."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _formatted(value: Any, form: str) -> str:
    number = finite(value)
    return DASH if number is None else f"{number:{form}}"


def decimal(value: Any, sign: str = "") -> str:
    """Returns "0.1234", with fewer decimals for large numbers and an exponent for tiny ones."""
    size = abs(finite(value) or 0)
    return _formatted(value, sign + (".1e" if 0 < size < _SMALL else ",.1f" if size >= _LARGE else ".4f"))


signed = partial(decimal, sign="+")  # "+0.1234"
tenths = partial(_formatted, form=",.1f")  # "32.0"
percent = partial(_formatted, form=".2%")  # "98.21%" for 0.9821
count = partial(_formatted, form=",.0f")  # "16,384"


def duration(seconds: Any) -> str:
    """Returns "2 h 5 min", "3 min 20 s" or "12.3 s"."""
    number = finite(seconds)
    return DASH if number is None else as_duration(number)


def anything(value: Any) -> str:
    """Returns a setting as text."""
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {anything(item)}" for key, item in value.items()) or DASH
    if isinstance(value, (list, tuple)):
        return ", ".join(map(anything, value)) or DASH
    return str(value)


def headline(report: Mapping[str, Any]) -> str:
    """Returns a sentence: what was evaluated, and on how many tokens."""
    dictionaries = report.get("dictionaries") or []
    data, model = report.get("data") or {}, report.get("model") or {}
    n = len(dictionaries)
    # a dictionary of several sites, as a crosscoder, has them in one text
    n_sites = len({one for site in sites_of(dictionaries) for one in site.split(", ")})
    # a report of what dictionaries are good for alone has no entry of its own for each
    text = f"{n} {'dictionary' if n == 1 else 'dictionaries'} at {n_sites} {'site' if n_sites == 1 else 'sites'}"
    text = text if n else "Dictionaries"
    detail = ", ".join(str(model[key]) for key in ("revision", "dtype") if model.get(key))
    if name := f"{shown_name(model)}{f' ({detail})' if detail else ''}".strip():
        text += f" of {name}"
    if finite(data.get("n_tokens_scored")) is not None:
        text += f", evaluated on {count(data['n_tokens_scored'])} tokens"
        text += f" of {data['source']}" if data.get("source") else ""
    if data.get("ctx_len"):
        text += f", in contexts of {count(data['ctx_len'])}"
    if finite(report.get("ce_clean")) is not None and finite(data.get("n_tokens_predicted")) is not None:
        text += f"; cross-entropy over {count(data['n_tokens_predicted'])} predictions"
    return text + "."


def error_of(dictionary: Mapping[str, Any], column: "Shown") -> str:
    """Returns " \u00b1 0.0012" of a metric, or nothing where it has no error bar."""
    return plus_minus((dictionary.get("errors") or {}).get(column.key), column.write)


def plus_minus(error: Mapping[str, Any] | None, write: Callable[[Any], str] = decimal) -> str:
    """Returns what stands after a figure: its standard error, or of a share its interval."""
    spread, ends = (
        finite((error or {}).get("standard_error")),
        [finite((error or {}).get(end)) for end in ("low", "high")],
    )
    if not spread:
        return ""
    if write is percent and None not in ends:
        low, high = (min(max(end or 0.0, 0.0), 1.0) for end in ends)  # earlier reports have wider ones
        return f" ({percent(low)} to {percent(high)})"
    # tenths of a latent, or hundredths of a percent, would often be 0
    text = f"{spread:.2g}" if write is tenths and spread < 1 else write(spread)
    return f" \u00b1 {text.removeprefix('+')}"


def uncertainty(report: Mapping[str, Any]) -> str:
    """Returns a sentence: what the error bars are of; empty if there are none."""
    data = report.get("data") or {}
    n, n_documents = finite(data.get("n_resamples")), finite(data.get("n_documents"))
    if n_documents is None:
        return ""
    if not n:
        return f"No error bars: {count(n_documents)} {'document was' if n_documents == 1 else 'documents were'} read."
    text = f"\u00b1 is the standard error over {count(n_documents)} documents ({count(n)} resamples); of a share, its "
    text += "95 % interval stands in parentheses."
    text += " They are few, so it is a rough guess." if n_documents < FEW_DOCUMENTS else ""
    # fewer tokens are spliced than are reconstructed, and so are fewer documents
    if any(
        "ce_increase" in d["metrics"] and "ce_increase" not in (d.get("errors") or {}) for d in report["dictionaries"]
    ):
        text += " Cross-entropy has none: it was measured on too few of them; --n-fidelity-tokens measures on more."
    return text


def sparser_than_k(report: Mapping[str, Any]) -> str:
    """Returns a sentence: which dictionaries keep k latents, of which few are positive."""
    found = [(d["name"], finite(d["metrics"].get("l0")), finite(d.get("k"))) for d in report.get("dictionaries") or []]
    told = [
        f"'{name}' {tenths(l0)} of {count(k)}" for name, l0, k in found if l0 is not None and k and l0 < _FEW_OF_K * k
    ]
    if not told:
        return ""
    return (
        f"Far fewer latents fire than k: {', '.join(told)}. Few of the k largest pre-activations of a token are "
        "positive, and only these count. Train at a third of the learning rate, or lower k to what fires."
    )


def remarks(report: Mapping[str, Any]) -> list[str]:
    """Returns sentences on the figures of a report that is read by itself."""
    return [text for text in (uncertainty(report), nothing_to_recover(report), sparser_than_k(report)) if text]


def nothing_to_recover(report: Mapping[str, Any]) -> str:
    """Returns a sentence: where ablation costs nothing, so that "recovered" is no number."""
    clean, told = finite(report.get("ce_clean")), list[str]()
    for site, found in (report.get("ablation") or {}).items():
        ablated = {kind: finite(found.get(f"ce_{kind}")) for kind in ABLATIONS}
        harmless = [kind for kind, ce in ablated.items() if clean is not None and ce is not None and ce <= clean]
        if harmless:
            told.append(f"{' and '.join(harmless)} ablation at {site}")
    return f"Nothing to recover: {'; '.join(told)} does not raise the cross-entropy." if told else ""


def excluded(report: Mapping[str, Any]) -> str:
    """Returns a sentence: which tokens count in no metric; empty if the report does not tell."""
    data = report.get("data") or {}
    text = f"Excluded from training, splicing and metrics alike: {data['filter']}." if data.get("filter") else ""
    if n_nonfinite := finite(data.get("n_tokens_nonfinite")):
        text += f" Also excluded: {count(n_nonfinite)} tokens with a NaN or an infinity in their activations."
    return text.strip()


def sites_of(dictionaries: Entries) -> list[str]:
    """Returns the sites of the dictionaries, each once, in order."""
    return list(dict.fromkeys(str(d["site"]) for d in dictionaries))


def shortened(name: Any, limit: int = 36) -> str:
    """Returns a name, without its middle if it is long."""
    text = " ".join(str(name).split())
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}\u2026{text[-limit // 2 :]}"


class Shown(NamedTuple):
    """A metric as a report shows it."""

    key: str
    label: str
    better: Literal["lower", "higher", "near 1", "neither"]
    span: str
    meaning: str
    write: Callable[[Any], str] = decimal


_CE_SPAN = "0 is the ablation, 1 the original model"
# L0 is a choice, not a merit, so neither way is better
TABLE = (
    Shown("l0", "L0", "neither", "0 to width", "mean number of nonzero latents per token", tenths),
    Shown("fvu", "FVU", "lower", "from 0; the mean scores 1",
          "variance unexplained: sum |x - x_hat|^2 / sum |x - mean x|^2"),
    Shown("frac_variance_explained", "FVE", "higher", "up to 1", "variance explained: 1 - FVU"),
    Shown("ce_reconstructed", "CE", "lower", "from 0",
          "cross-entropy with x_hat spliced into the model, nats per token"),
    Shown("ce_increase", "CE increase", "lower", "about 0 and up",
          "CE minus that of the original model, nats per token", signed),
    Shown("ce_recovered_zero", "recovered (zero)", "higher", _CE_SPAN,
          "(zero-ablated CE - CE) / (zero-ablated CE - original CE)"),
    Shown("ce_recovered_mean", "recovered (mean)", "higher", _CE_SPAN,
          "the same with mean ablation, usually the harder baseline"),
    Shown("ce_recovered_resample", "recovered (resample)", "higher", _CE_SPAN,
          "the same with the activations of random tokens as ablation"),
    Shown("kl", "KL", "lower", "from 0", "KL divergence from the original model's predictions, nats per token"),
    Shown("frac_alive", "alive", "higher", "0% to 100%",
          "latents that fired on at least one token; grows with the tokens", percent),
)  # fmt: skip
"""Columns of the table of dictionaries."""

DETAILS = (
    Shown("mse", "MSE", "lower", "from 0", "squared norm of the error, mean per token"),
    Shown("l2_loss", "L2 loss", "lower", "from 0", "norm of the error, mean per token"),
    Shown("l1_loss", "L1", "neither", "from 0", "sum of the absolute latents, mean per token"),
    Shown("cossim", "cosine", "higher", "-1 to 1", "cosine of x and x_hat, mean per token"),
    Shown("l2_ratio", "norm ratio", "near 1", "from 0", "|x_hat| / |x|, mean per token; below 1 is shrinkage"),
    Shown("relative_reconstruction_bias", "bias", "near 1", "from 0",
          "sum |x_hat|^2 / sum <x, x_hat>; below 1 is shrinkage"),
    *(Shown(f"kl_recovered_{kind}", f"KL recovered ({kind})", "higher", _CE_SPAN,
            f"1 - KL / KL with {kind} ablation")
      for kind in ("zero", "mean", "resample")),
    Shown("frac_dense", "dense", "lower", "0% to 100%",
          "latents that fired on more than a tenth of the tokens", percent),
    Shown("n_alive", "latents alive", "higher", "0 to width", "number of latents that fired", count),
    Shown("n_tokens", "tokens", "neither", "from 1", "number of tokens in the metrics of activations", count),
)  # fmt: skip
"""Metrics shown for each dictionary by itself."""

BASELINES = {
    "ce_mean": "CE mean-ablated",
    "ce_zero": "CE zero-ablated",
    "ce_resample": "CE resampled",
    "kl_mean": "KL mean-ablated",
    "kl_zero": "KL zero-ablated",
    "kl_resample": "KL resampled",
}
"""Columns of the table of ablations, after the cross-entropy of the original model."""


def shown_columns(dictionaries: Entries) -> list[Shown]:
    """Returns the columns of the table in which at least one dictionary has a value."""
    return [c for c in TABLE if any(finite(d["metrics"].get(c.key)) is not None for d in dictionaries)]


def defined(dictionaries: Entries) -> list[Shown]:
    """Returns the metrics that a report explains: the columns, and the details that occur."""
    present = {key for d in dictionaries for key in d["metrics"]}
    return [*shown_columns(dictionaries), *(metric for metric in DETAILS if metric.key in present)]


TRAINING_COLUMNS = ("k", "steps", "tokens", "lr", "seed")
"""Columns of the table of what dictionaries were trained with."""


def training_of(dictionary: Mapping[str, Any]) -> list[str]:
    """Returns the cells of `TRAINING_COLUMNS`; all of them a dash where nothing is known."""
    config, history = dictionary.get("config") or {}, dictionary.get("history") or [{}]
    k, last = dictionary.get("k") if config.get("k") is None else config["k"], history[-1]
    return [
        anything(k),
        count(last.get("step")),
        count(last.get("tokens")),
        *(anything(config.get(n)) for n in ("lr", "seed")),
    ]


def baselines(report: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    """Returns the rows of the table of ablations: site, the original model's CE, `BASELINES`."""
    clean = _cells(report, {"ce_clean": decimal}, report.get("errors"))
    ablation = report.get("ablation") or {}
    columns = dict.fromkeys(BASELINES, decimal)
    return [(str(site), clean + _cells(found, columns, found.get("errors"))) for site, found in ablation.items()]


TOKEN_GROUP_COLUMNS = ("of tokens", "of the error", "FVU", "MSE", "L0")
"""Columns of the tables of tokens by position and kind."""


def token_groups(dictionary: Mapping[str, Any], key: str) -> list[tuple[Mapping[str, Any], list[Cell]]]:
    """Returns (group, its figures) of the tokens by position or by kind."""
    columns = {"share_of_tokens": percent, "share_of_error": percent, "fvu": decimal, "mse": decimal, "l0": tenths}
    return [(group, _cells(group, columns, group.get("errors"))) for group in dictionary.get(key) or []]


def together(report: Mapping[str, Any]) -> list[tuple[Sequence[str], list[Cell]]]:
    """Returns (names, CE, its increase and KL) of dictionaries spliced at once."""
    columns = {"ce_reconstructed": decimal, "ce_increase": signed, "kl": decimal}
    return [(one["names"], _cells(one["metrics"], columns, one.get("errors"))) for one in report.get("together") or []]


def _cells(
    figures: Mapping[str, Any], columns: Mapping[str, Callable[[Any], str]], errors: Mapping[str, Any] | None
) -> list[Cell]:
    """Returns figures by their keys, each written by its column's function."""
    held = errors or {}
    return [Cell(write(figures.get(key)), plus_minus(held.get(key), write)) for key, write in columns.items()]


def all_metrics(dictionary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (label, text) of a dictionary's metrics; unknown ones have their key as label."""
    metrics = dictionary["metrics"]
    known = {metric.key: metric for metric in (*TABLE, *DETAILS)}
    pairs = [
        (metric.label, metric.write(metrics[key]) + error_of(dictionary, metric))
        for key, metric in known.items()
        if key in metrics
    ]
    others = {key: value for key, value in metrics.items() if key not in known}
    pairs += [(key, decimal(v) if isinstance(v, float) else anything(v)) for key, v in others.items()]
    for key, value in (dictionary.get("metrics_all_tokens") or {}).items():
        label, write = (known[key].label, known[key].write) if key in known else (key, decimal)
        pairs.append((f"{label} (all tokens)", write(value)))
    geometry = dictionary.get("geometry") or {}
    return pairs + [
        (k.replace("_", " "), decimal(v) if isinstance(v, float) else anything(v)) for k, v in geometry.items()
    ]


def best_values(dictionaries: Entries) -> set[tuple[int, str]]:
    """Returns (index of dictionary, metric) of the best values among the dictionaries of each site.

    With error bars these are all that are within the error of the best: both standard errors
    together. A site with one value, or of which all would be best, has no best one, and neither has
    one whose dictionaries differ in L0: more latents reconstruct better.
    """
    best: set[tuple[int, str]] = set()
    for site in {d["site"] for d in dictionaries}:
        sparsity = [
            l0 for d in dictionaries if d["site"] == site and (l0 := finite(d["metrics"].get("l0"))) is not None
        ]
        if sparsity and max(sparsity) > _SIMILAR_L0 * min(sparsity):
            continue
        for metric in TABLE:
            values = {i: finite(d["metrics"].get(metric.key)) for i, d in enumerate(dictionaries) if d["site"] == site}
            present = {i: value for i, value in values.items() if value is not None}
            if metric.better in ("lower", "higher") and len(set(present.values())) > 1:
                top = (min if metric.better == "lower" else max)(present, key=lambda i: present[i])
                errors = {i: _standard_error(dictionaries[i], metric.key) for i in present}
                near = {i for i in present if abs(present[i] - present[top]) <= math.hypot(errors[i], errors[top])}
                best |= {(i, metric.key) for i in near if len(near) < len(present)}
    return best


def _standard_error(dictionary: Mapping[str, Any], key: str) -> float:
    return finite(((dictionary.get("errors") or {}).get(key) or {}).get("standard_error")) or 0.0
