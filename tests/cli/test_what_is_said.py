"""What Python accepts, the shell can say: every argument is an option, or has a reason why it is none."""

import dataclasses
import inspect
import subprocess
import sys
import typing

import pytest

from dictionary_learning import (
    ActivationBuffer,
    ContextStream,
    evaluate_dictionaries,
    load_model,
    trainSAE,
    write_cache,
)
from dictionary_learning.activations._reader import ReadingConfig
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.cli import build_parser
from dictionary_learning.cli._parser import OTHERS
from dictionary_learning.cli._sweep import SweepFile
from dictionary_learning.cli._train_options import TrainArguments
from dictionary_learning.data import Chat, TokenStream, as_source, mix, pretokenize
from dictionary_learning.evaluation import EvaluationConfig
from dictionary_learning.sweeps import run_sweep

OBJECT = "an object of Python"
FILLED = "the command gives it"
CHECK = "only checks what is found by itself"

SOURCE = (
    as_source,
    {"dtype": "token_dtype", "chat": "chat_template"},
    {"name": "a label of objects; a file has its own name"},
)
CHAT = (Chat, {"template": "chat_template", "seed": "chat_seed"}, {})
MIX = (mix, {"sources": "mix", "seed": "mix_seed"}, {"name": "a label of objects; a file has its own name"})
TOKENS = (
    TokenStream,
    {"source": "data"},
    {"tokenizer": "that of the model", "n_embeddings": "those of the model"},
)
MODEL = (
    load_model,
    {"options": "model_args"},
    {"example": OBJECT, "channels": "of models of images, which read no text"},
)
READING = (ReadingConfig, {}, {})
EVALUATION = {
    "n_tokens": "n_eval_tokens", "batch_size": "eval_batch_size", "seed": "eval_seed",
}  # fmt: skip
SAID = {
    "train": [
        SOURCE, CHAT, MIX, TOKENS, MODEL, READING,
        (
            ActivationBuffer,
            {"submodule": "sites", "out_batch_size": "batch_size", "dtype": "storage_dtype", "device": "storage_device"},
            {"d_submodule": CHECK},
        ),
        (ContextStream, {"submodule": "sites"}, {"predict": "the method decides it"}),
        (
            ActivationCache,
            {
                "path": "cache", "submodule": "sites", "out_batch_size": "batch_size", "window": "cache_window",
                "device": "storage_device",
            },
            {"d_submodule": CHECK, "dtype": "as the cache was written"},
        ),
        (EvaluationConfig, EVALUATION, {}),
        (
            trainSAE,
            {
                "steps": "n_tokens", "trainer_configs": "trainer", "use_wandb": "wandb_project",
                "activations_split_by_head": "wiring", "transcoder": "wiring", "backup_steps": "checkpoint_steps",
                "evaluation": "n_eval_tokens", "evaluation_data": "held_out_every",
            },
            {"loggers": OBJECT, "run_cfg": FILLED, "progress": "a run of the shell shows it; --quiet does not"},
        ),
    ],
    "cache": [
        SOURCE, CHAT, MIX, TOKENS, MODEL, READING,
        (
            write_cache,
            {"path": "out", "submodule": "sites", "dtype": "storage_dtype"},
            {"run_cfg": FILLED, "reading": "see ReadingConfig"},
        ),
    ],
    "pretokenize": [
        SOURCE, CHAT, MIX, TOKENS,
        (pretokenize, {"tokenizer": "model"}, {"options": "see TokenStream"}),
    ],
    "evaluate": [
        SOURCE, CHAT, MIX, TOKENS, MODEL,
        (EvaluationConfig, {}, {}),
        (
            evaluate_dictionaries,
            {"candidates": "dictionaries", "text": "data"},
            {
                "config": "see EvaluationConfig",
                "token_filter": "as in training",
                "norm_limits": "as in training",
            },
        ),
    ],
    "sweep file": [
        SOURCE, CHAT, MIX, TOKENS, MODEL, READING,
        (EvaluationConfig, EVALUATION, {}),
        (
            run_sweep,
            {"config": "methods", "steps": "n_tokens", "evaluation": "n_eval_tokens", "evaluation_data": "held_out_every"},
            {"save_dir": "of the command", "resume": "of the command", "run_cfg": FILLED, "progress": "--quiet"},
        ),
    ],
}  # fmt: skip
"""For each command the signatures, what their arguments are called there, and which it cannot say and why."""
CASES = [
    pytest.param(command, *entry, id=f"{command}-{getattr(entry[0], '__name__', entry[0])}")
    for command, entries in SAID.items()
    for entry in entries
]


def options_of(command: str) -> set[str]:
    if command == "sweep file":
        return {field.name for field in dataclasses.fields(SweepFile)}
    parser = build_parser(command, ["--trainer", "top_k"] if command == "train" else [])
    return {action.dest for action in parser._actions}


@pytest.mark.parametrize(("command", "function", "names", "reasons"), CASES)
def test_every_argument_is_an_option_or_has_a_reason(command, function, names, reasons):
    arguments = set(inspect.signature(function).parameters) - {"self"}
    options = options_of(command)
    missing = {name for name in arguments if names.get(name, name) not in options and name not in reasons}
    assert not missing, f"'{command}' cannot say {missing} of {function.__name__}: add options, or a reason here"
    # what is listed is there, and has no option after all
    assert {*names, *reasons} <= arguments
    assert set(names.values()) <= options and not set(reasons) & set(names)
    assert all(reasons.values())


@pytest.mark.parametrize("command", ["train", "cache", "pretokenize"])
def test_every_option_is_in_a_group(command):
    parser = build_parser(command, [])
    known = {field.name for field in dataclasses.fields(TrainArguments)}
    if OTHERS in parser._groups:
        others = {action.dest for action in parser._groups[OTHERS]._group_actions if action.option_strings}
        assert not others & known - {"model", "data"}  # which train has by position


@pytest.mark.parametrize(
    ("option", "config"),
    [("convention", EvaluationConfig), ("io", ReadingConfig)],
)
def test_choices_are_those_of_python(option, config):
    ours, theirs = typing.get_type_hints(TrainArguments)[option], typing.get_type_hints(config)[option]
    assert choices(ours) == choices(theirs)


@pytest.mark.parametrize(
    ("option", "function"),
    [
        *((name, TokenStream) for name in ("bos", "padding_side", "long_documents", "rows")),
        ("token_dtype", as_source), ("on_bad_document", as_source), ("exhausted", mix), ("end_of_data", ActivationBuffer),
        ("placement", trainSAE), ("on_anomaly", trainSAE),
    ],
)  # fmt: skip
def test_choices_are_those_of_a_function(option, function):
    name = {"token_dtype": "dtype"}.get(option, option)
    theirs = inspect.signature(function).parameters[str(name)].annotation
    assert choices(typing.get_type_hints(TrainArguments)[option]) == choices(theirs)


def choices(hint) -> set:
    parts = [hint, *typing.get_args(hint)]
    return {choice for part in parts if typing.get_origin(part) is typing.Literal for choice in typing.get_args(part)}


@pytest.mark.parametrize("function", [as_source, Chat, TokenStream, EvaluationConfig, ReadingConfig, mix])
def test_defaults_are_those_of_python(function):
    """But for sizes that are chosen for the shell, or follow the run."""
    names = {"dtype": "token_dtype", "template": "chat_template"}
    if function in (Chat, mix):
        names["seed"] = {Chat: "chat_seed", mix: "mix_seed"}[function]
    if function is EvaluationConfig:
        names |= EVALUATION
    defaults = {field.name: field.default for field in dataclasses.fields(TrainArguments)}
    sizes = ("n_eval_tokens", "n_fidelity_tokens")
    for name, parameter in inspect.signature(function).parameters.items():
        option, expected = names.get(name, name), parameter.default
        if option in defaults and expected is not parameter.empty and option not in ("io", *sizes):
            empty = ((), {}, None)
            assert defaults[option] == expected or (defaults[option] in empty and expected in empty), name


def test_help_of_train_imports_no_library_of_models_or_data():
    script = (
        "import sys\nfrom dictionary_learning.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
        "heavy = ('transformers', 'nnsight', 'datasets', 'pyarrow', 'pandas', 'matplotlib', 'numba', 'huggingface_hub')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
