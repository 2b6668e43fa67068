"""Commands that work, and words that may stand wrongly in each of their options."""

import argparse
from collections.abc import Iterator

from dictionary_learning._border import BOUNDS
from dictionary_learning.cli import COMMANDS, build_parser
from tests.border_cases import CTX, SITE, Place

_BY_NAME = {
    "device": ["nosuch", "cuda:77", "meta"],
    "dtype": ["nosuch", "int32"],
    "token_dtype": ["nosuch"],
    "sites": ["nothing", f"{SITE}:side", "model.layers.9"],
    "target_sites": [f"{SITE}:side"],
    "layers": ["99", "x", "0.5"],
    "seqpos_slice": ["x", "0"],
    "gpus": ["0"],
    "data_args": ["nothing", "=", "nosuch=1"],
    "separator": ["nosuch", "5000"],
    "format": ["nosuch"],
    "case": ["nosuch"],
    "to": ["nosuch"],
    "dict_class": ["nosuch"],
    "optimizer": ["nosuch"],
    "schedule": ["nosuch"],
    "normalize": ["nosuch"],
    "wiring": ["nosuch"],
    "b_dec_init_method": ["nosuch"],
    "finetune": ["nosuch"],
    "site": ["nothing"],
    "window": ["x", "0", "3"],
    "seed": ["x", "0.5", str(2**70)],
    "latents": ["x", "-1", "5-2", "99999", "1e3"],
    **{n: ["nosuch", "openai:", "openai:m@nothing", "local:nosuch"] for n in ("judge", "scorer", "embedder")},
    "scores": ["nosuch"],
    "dictionary": ["nosuch"],
    "tasks": ["nosuch", "absorption probin"],
}


def write_files(place: Place) -> None:
    """Writes what the commands read, besides what a place has."""
    root, data, model = place.root, str(place.root / "text.txt"), str(place.root / "model")
    (root / "sweep.yaml").write_text(
        f"{{model: '{model}', data: '{data}', ctx_len: {CTX}, dtype: float32, device: cpu, sites: ['{SITE}'], held_out_every: 3,"
        "refresh_batch_size: 2, n_tokens: 32, batch_size: 32, n_ctxs: 4, n_eval_tokens: 32, n_fidelity_tokens: 0,"
        "methods: {top_k: {k: 4, dict_size: 32}}}"
    )
    (root / "tasks.csv").write_text("text,label\n" + "\n".join(f"w{n} w{n + 1} w2,{n % 2}" for n in range(16)))


def working(place: Place) -> dict[str, list[str]]:
    """Returns the words of each command that work."""
    root, data, model = place.root, str(place.root / "text.txt"), str(place.root / "model")
    small = ["--ctx-len", str(CTX), "--dtype", "float32", "--device", "cpu", "--sites", SITE, "--held-out-every", "3"]
    reading = [*small, "--refresh-batch-size", "2"]
    train = [
        "--n-tokens",
        "32",
        "--batch-size",
        "32",
        "--n-ctxs",
        "4",
        "--n-eval-tokens",
        "32",
        "--n-fidelity-tokens",
        "0",
    ]
    return {
        "train": [model, data, *reading, *train, "--k", "4", "--dict-size", "32", "--save-dir", str(place.new())],
        "sweep": [str(root / "sweep.yaml"), "--save-dir", str(place.new())],
        "benchmark": ["synthetic", "--case", "small", "--n-tokens", "1024", "--n-eval-tokens", "64", "--k", "4", "--seeds", "0",
                      "--device", "cpu", "--save-dir", str(place.new())],
        "evaluate": [str(root / "dictionary"), "--model", model, "--data", data, *small[:-2], "--n-tokens", "32",
                     "--save-dir", str(place.new()), "--n-fidelity-tokens", "0"],
        "plan": [model, "--layers", "1", "--dict-size", "1k", "--gpus", "2"],
        "contexts": [model, "--dictionaries", str(root / "dictionary"), "--data", data, *small[:-2], "--n-tokens", "32",
                     "--save-dir", str(place.new())],
        "compare": [str(root / "dictionary"), str(root / "other dictionary"), "--model", model, "--data", data, *small[:-2],
                    "--n-tokens", "32", "--save-dir", str(place.new()), "--n-fidelity-tokens", "0"],
        "cache": [model, data, "--out", str(place.new()), *reading, "--n-tokens", "32"],
        "pretokenize": [data, "--model", model, "--out", str(place.new()), "--ctx-len", str(CTX)],
        "explain": [str(root / "store"), "--latents", "0-3", "--seed", "1"],
        "export": [str(root / "store"), str(place.new()), "--to", "saedashboard", "--model-id", "tiny"],
        "info": [str(root / "cache")],
        "convert": [str(root / "dictionary"), str(place.new())],
        "pretrained": ["gemma"],
        "completion": ["bash"],
        "dashboard": [str(root / "dictionary"), "--model", model, "--data", data, *small[:-2], "--n-tokens", "32",
                      "--save-dir", str(place.new()), "--n-shown", "2", "--map", "pca"],
        "serve": [str(root / "dictionary")],  # it knows no model: a server would not end
        "downstream": [str(root / "dictionary"), "--model", model, "--data", str(root / "tasks.csv"), "--dtype", "float32",
                       "--device", "cpu", "--sites", SITE, "--save-dir", str(place.new()), "--n-resamples", "0"],
        "reproduce": [str(root / "dictionary")],  # no run: it is refused, whatever else is wrong
    }  # fmt: skip


def wrong_words(place: Place) -> Iterator[tuple[str, ...]]:
    """Yields commands, each with one wrong word."""
    root = place.root
    files = [str(root / name) for name in ("nothing", "junk.parquet", "junk.npy", "junk.jsonl", "empty", "empty.txt")]
    models = [str(root / name) for name in ("nothing", "empty", "text.txt", "model cut", "model without config",
                                            "model of another shape", "dictionary")]  # fmt: skip
    saved = [str(root / name) for name in ("nothing", "empty", "text.txt", "dictionary cut", "model")]
    places = {
        "train": {0: models, 1: files}, "evaluate": {0: saved}, "compare": {0: saved}, "contexts": {0: models}, "plan": {0: models},
        "cache": {0: models, 1: files},
        "pretokenize": {0: files}, "convert": {0: saved}, "info": {0: saved[:-1]},
        "reproduce": {0: saved}, "explain": {0: saved}, "export": {0: saved}, "dashboard": {0: saved}, "serve": {0: saved},
        "sweep": {0: saved}, "completion": {0: ["nosuch"]}, "benchmark": {0: ["nosuch", "real"]}, "downstream": {0: saved},
    }  # fmt: skip
    named = {"model": models, "data": files, "save_dir": [str(root / "text.txt")], "out": [str(root / "text.txt")],
             "cache": saved}  # fmt: skip
    yield ("nosuch",)
    for command in COMMANDS:
        yield command, *working(place)[command], "--nosuch", "1"
        for position, words in places.get(command, {}).items():
            for word in words:
                given = working(place)[command]
                given[position] = word
                yield command, *given
        for option, word in _wrong_options(command, named):
            yield command, *_replaced(working(place)[command], option, word)


def _wrong_options(command: str, named: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    parser = build_parser(command, [])
    for action in parser._actions:
        if not action.option_strings or isinstance(action, argparse._HelpAction):
            continue
        option, name = action.option_strings[0], action.dest
        hint = action.metavar or ("BOOL" if option in parser.flags else "")
        words = [*named.get(name, []), *_BY_NAME.get(name, [])]
        words += {"INT": ["x", "2.5", "nan", "1e400"], "FLOAT": ["x", "nan", "inf"], "BOOL": ["perhaps"]}.get(hint, [])
        words += ["nosuch"] if "|" in hint else []
        bounds = BOUNDS.get(name, {})
        words += [str(int(bounds["at_least"] - 1))] if "at_least" in bounds else []
        for word in words or [""]:
            yield option, word


def _replaced(words: list[str], option: str, word: str) -> list[str]:
    kept = list(words)
    if option in kept:
        del kept[kept.index(option) : kept.index(option) + 2]
    return [*kept, option, word]
