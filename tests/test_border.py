"""Whatever is given wrongly, to a function or a command, is an error of ours that names it and says what to do."""

import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import safetensors
import torch

from dictionary_learning import (
    ActivationBuffer,
    ActivationCache,
    ActivationMixture,
    ContextStream,
    trainSAE,
    write_cache,
)
from dictionary_learning._border import checked, said
from dictionary_learning.cli import COMMANDS, TRACEBACK, build_parser, main
from dictionary_learning.data import ExampleStream, Source, TokenStream, as_source
from dictionary_learning.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DictionaryLearningError,
    UnknownNameError,
)
from tests.border_cases import CALLS, SITE, Place, wrong_arguments
from tests.border_commands import working, write_files, wrong_words
from tests.border_faults import FAULTS

LEAST = 400
"""Inputs that the tables hold at least."""
_WHOLE_MODEL = "the model itself is a module too, whose path is empty"
_LABEL = "a label that is only shown"
_LATER = "what it names is looked up later, and is refused there"
HARMLESS = {
    **{(name, part): (_WHOLE_MODEL, "''") for name in ("ActivationBuffer", "ContextStream", "write_cache")
       for part in ("submodule",)},
    ("sites", "submodules"): (_WHOLE_MODEL, "''"),
    ("widths", "sites"): ("no site has no width", "''", "[]"),
    ("capture", "sites"): ("no site has no activations", "''", "[]"),
    ("Site", "path"): (_LATER, "''", r"'a\x00b'"),
    ("Site", "index"): (_LATER, str(2**70)),
    ("Site", "call"): (_LATER, str(2**70)),
    ("benchmark_synthetic", "seeds"): ("a list of seeds", "[3]"),
    ("Site.parse", "text"): (_WHOLE_MODEL, "''"),
    ("config", "site"): (_LATER, "''", "'nothing'", "[]", "'model.layers.9'"),
    ("config", "target_site"): (_LATER, "['x']"),
    ("ExampleStream", "data"): ("an example is whatever the model reads", "[", "tensor("),
    ("as_source", "data"): ("ids are compared with the vocabulary of a tokenizer or model", "[[-1, 3]]", "[[3, 5000]]"),
    **{(name, "name"): (_LABEL, "''", r"'a\x00b'") for name in ("Candidate", "as_source", "mix", "ExampleStream")},
    **{("list_pretrained", part): ("what is searched for, and not found", "''", r"'a\x00b'", "'nothing'",
                                   f"'{SITE}:side'", "'model.layers.9'") for part in ("model", "site", "name")},
    ("as_custom_sae", "config"): ("what other packages read of it is theirs", "{'a': {"),
    ("logit_lens", "site"): ("what is no linear module's input is the residual stream", "''", "'model.layers.9'"),
    **{("write_sae_dashboard", part): (_LABEL, "''", r"'a\x00b'", "'A'", "'a--b'") for part in ("model_id", "source_set")},
    ("decode", "x"): ("without a part W_skip x nothing reads it", "tensor("),
}  # fmt: skip
"""What is accepted: by function and argument, why, and how the values begin."""
HARMLESS_WORDS = {
    ("pretokenize", "--model"): "only the tokenizer is read, and the weights are not",
    ("info", ""): "only the config is read",
    ("pretrained", "--model"): "what is searched for, and not found",
    ("pretrained", "--site"): "what is searched for, and not found",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Folders that commands name themselves are not in the project."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Leaves types unchecked, as they are for a user."""
    made = Place(tmp_path_factory.mktemp("place"))
    jaxtyping.config.update("jaxtyping_disable", True)
    yield made
    jaxtyping.config.update("jaxtyping_disable", False)


def outcome(call: Callable[[], Any]) -> BaseException | None:
    """Returns what a call raises; data are read as far as the first batch."""
    try:
        made = call()
        if hasattr(made, "__next__"):
            next(made)
    except Exception as error:  # noqa: BLE001  (whatever it is, it is judged)
        return error
    return None


def parts_of(value: Any) -> Iterator[Any]:
    """Yields a value, and all that it holds."""
    yield value
    inside = (
        [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else []
    )
    for part in inside:
        yield from parts_of(part)


def names(message: str, parameter: str, value: Any) -> bool:
    """Returns whether a message names what was given: the argument, the value, its type or its shape."""
    parts = list(parts_of(value))
    said = [text[:20] for part in parts for text in (repr(part), str(part) or ":out", type(part).__name__)]
    said += (
        ["shape", "width", "ids", "mask", "(batch, "] if any(isinstance(part, torch.Tensor) for part in parts) else []
    )
    said += ["no ", "No "] if len(parts) == 1 and isinstance(value, (list, Mapping)) else []  # an empty one
    return any(text in message for text in (parameter, *said))


def names_of_python(command: str, message: str) -> list[str]:
    """Returns the arguments of Python that a command has options for, and its message says as Python does.

    What stands in quotes is of files.
    """
    if command not in COMMANDS:
        return []
    fields = [action.dest for action in build_parser(command, [])._actions if action.option_strings]
    plain = re.sub(r"'[^']*'|--data-args \S+", "", message.partition("dictionary-learning ")[0])
    return [
        name
        for name in fields
        if re.search(rf"(?<![\w/-]){name}=" + rf"|(?<![\w/-]){name}(?![\w/-])" * ("_" in name), plain)
    ]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_wrong_argument_is_an_error_of_ours_that_names_it(place, name):
    function, good = CALLS[name](place)
    assert name == "push_to_hub" or outcome(functools.partial(function, **good)) is None  # there is no hub here
    for parameter, value in wrong_arguments(place, name):
        function, good = CALLS[name](place)
        error, given = outcome(functools.partial(function, **{**good, parameter: value})), f"{parameter}={value!r}"
        if error is None:
            _, *values = HARMLESS.get((name, parameter), ("",))
            assert any(repr(value).startswith(start) for start in values), f"{name} accepts {given}"
            continue
        assert isinstance(error, DictionaryLearningError), f"{name}({given}) raises {error!r}"
        assert names(str(error), parameter, value), f"{name}({given}) says: {error}"
        assert re.search(r"[.;:,] ", str(error)), f"{name}({given}) says nothing to do: {error}"
        assert not re.search(r"(?<![(\w])--[a-z]", str(error)), f"{name}({given}) says an option of the shell: {error}"


NO_PROMPTS = {"capture", "run"}
PROMPTS = {
    **dict.fromkeys(
        ("read_latents", "latent_edits_for", "attribute", "mean_latents", "faithfulness", "feature_effect"), "inputs"
    ),
    **dict.fromkeys(("token_predictions", "latent_view"), "text"),
    **dict.fromkeys(("attribution_graph", "test_prompt"), "prompt"),
    "generate": "prompts",
}
"""Functions that take prompts, and by which argument."""
MESSAGES = [{"role": "user", "content": "w1 w2"}]


@pytest.mark.parametrize("name", PROMPTS)
def test_chat_messages_as_a_prompt_say_what_makes_tokens_of_them(place, name):
    for messages in (MESSAGES, [MESSAGES, MESSAGES], tuple(MESSAGES), MESSAGES[0]):
        function, good = CALLS[name](place)
        error = outcome(functools.partial(function, **{**good, PROMPTS[name]: messages}))
        assert isinstance(error, DictionaryLearningError) and "model.tokenizer.apply_chat_template(messages" in str(
            error
        )


def test_what_takes_prompts_is_known(place):
    named = {name: {*inspect.signature(CALLS[name](place)[0]).parameters} for name in CALLS}
    assert {name for name in CALLS if {"inputs", "prompts", "prompt"} & named[name]} - {*PROMPTS} == NO_PROMPTS


@pytest.mark.filterwarnings("ignore")
def test_wrong_word_of_a_command_ends_in_one_line_and_status_2(place, caplog, monkeypatch):
    monkeypatch.chdir(place.root)
    write_files(place)
    for command, words in working(place).items():
        assert main([command, *words]) == (2 if command in ("reproduce", "serve") else 0)  # nothing to repeat, no model
    for words in wrong_words(place):
        caplog.clear()
        status = main(words)
        option = words[-2] if words[-2:-1] and words[-2].startswith("--") else ""
        if status == 0 and (words[0], option) in HARMLESS_WORDS:
            continue
        assert status == 2, words
        line = caplog.records[-1].getMessage()
        assert "\n" not in line and TRACEBACK not in line, line  # the latter would be no error of ours
        assert not names_of_python(words[0], line), line
        assert caplog.records[-1].levelno == logging.ERROR and not caplog.records[-1].exc_info


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("ignore")
def test_fault_is_an_error_of_ours_that_says_what_to_do(place, fault):
    error = outcome(lambda: FAULTS[fault](place))
    assert isinstance(error, DictionaryLearningError), repr(error)
    assert re.search(r"[.;:,] ", str(error)), error


@pytest.mark.parametrize(
    "wrong",
    [{"data": "nosuch.txt"}, {"dtype": "nosuch"}, {"n_ctxs": 0}, {"ctx_len": "x"}, {"out_batch_size": 10**9}],
    ids=str,
)
def test_what_needs_no_model_is_checked_before_it_is_loaded(place, tmp_path, wrong):
    given = {"data": place.texts, "model": "no/such_model", "submodule": SITE, **wrong}
    for function in (ActivationBuffer, ContextStream, functools.partial(write_cache, tmp_path)):
        if set(wrong) <= {*inspect.signature(function).parameters, "ctx_len"}:
            error = outcome(functools.partial(function, **given))
            assert isinstance(error, (ConfigError, DataError)), error


def test_devices_and_numbers_of_numpy_may_stand_in_configs(place):
    sizes = {"k": np.int32(4), "dict_size": np.int64(32), "lr": np.float32(1e-3), "scale_encoder": np.bool_(True)}
    config = {"trainer": "top_k", "device": torch.device("cpu"), **sizes}
    (made,) = trainSAE(place.activations, config, np.int64(2), device=torch.device("cpu"), progress=False)
    assert (made.k, made.dict_size) == (4, 32)


def test_what_an_edit_raises_is_the_callers(place):
    assert isinstance(outcome(lambda: place.model.run(place.ids, {SITE: lambda x: 1 / 0})), ZeroDivisionError)


SERVERS = (ActivationBuffer, ActivationCache, ActivationMixture, ContextStream, TokenStream, Source, ExampleStream)
"""What serves batches, contexts or documents: objects that users hold and call."""
ELSEWHERE = {
    "ActivationCache.create": "write_cache",
    "ActivationCache.n_heads": "Site.parse",
    "Source.number_of": "position",
}


def test_every_method_that_takes_arguments_is_called_wrongly():
    methods = {
        f"{kind.__name__}.{name}"
        for kind in SERVERS
        for name, method in inspect.getmembers(kind, inspect.isroutine)
        if not name.startswith("_") and method.__module__.startswith("dictionary_learning")
        if {*inspect.signature(method).parameters} - {"self"}
    }
    assert methods - {*CALLS} == {*ELSEWHERE}


def test_tables_are_large(place):
    n_words = sum(1 for _ in wrong_words(place))
    n_arguments = sum(len(wrong_arguments(place, name)) for name in CALLS)
    assert n_arguments > LEAST and n_words > LEAST


def test_traceback_is_shown_when_asked_for(caplog):
    assert main(["info", "nosuch", TRACEBACK]) == 2
    assert caplog.records[-1].exc_info


def test_an_error_of_another_package_is_one_line_too(caplog, monkeypatch):
    monkeypatch.setattr("dictionary_learning.cli._run", lambda *_: {}["two\nlines"])
    assert main(["info"]) == 2
    assert caplog.records[-1].getMessage() == f"info failed: KeyError: 'two\\nlines'. {TRACEBACK} shows where."


def test_an_error_of_another_package_is_wrapped_with_the_request():
    @checked(wraps=CheckpointError)
    def load_it(path: str | Path, *, k: int = 3) -> None:
        raise OSError("no such device\nat all")

    with pytest.raises(
        CheckpointError, match=r"load_it\(path='a', k=4\) failed: OSError: no such device. Check"
    ) as found:
        load_it("a", k=4.0)
    assert isinstance(found.value.__cause__, OSError)


def test_a_full_disk_is_named_whatever_says_it(place, tmp_path, monkeypatch):
    def full(*_):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("dictionary_learning.activations.cache._writer.write_shard", full)
    with pytest.raises(DataError, match="No space left.*Free some of the disk, and repeat the call"):
        write_cache(tmp_path / "cache", place.texts, place.model, SITE, ctx_len=16, refresh_batch_size=2)


def test_an_error_of_ours_is_said_without_its_kind_and_with_one_stop():
    assert said(DataError("Nothing is there. Give more.")) == "Nothing is there. Give more."
    assert said(OSError("gone\nall")) == "OSError: gone."


def test_what_is_truth_is_called_by_what_was_given():
    with pytest.raises(DataError, match=r"Got a Tensor of torch.bool as data"):
        as_source(torch.tensor([[True, False]]))


def test_numbers_of_other_kinds_are_converted():
    @checked()
    def add(*, k: int, scale: float, is_on: bool = False, words: tuple[str, ...] = ()) -> tuple[Any, ...]:
        return k, scale, is_on, words

    tensor, three = torch.tensor(3), torch.tensor(3).numpy()[()]
    for k in (3, 3.0, three, tensor):
        for is_on in (True, torch.ones(1).bool().numpy()[0]):
            made = add(k=k, scale=k, is_on=is_on, words=["a"])
            assert made == (3, 3.0, True, ("a",)) and [type(part) for part in made] == [int, float, bool, tuple]


def test_calls_that_no_signature_has_say_what_it_takes():
    @checked()
    def add(one: int, *, other: int = 1) -> int:
        return one + other

    with pytest.raises(UnknownNameError, match="Did you mean 'other'"):
        add(1, othr=2)
    with pytest.raises(ConfigError, match=r"missing a required argument: 'one'. It takes: one, other."):
        add()


def test_errors_are_sentences_without_what_was_not_given(place):
    error = outcome(lambda: FAULTS["name longer than a file's"](place))
    assert "None" not in str(error) and len(str(error)) < 600, error
    error = outcome(lambda: FAULTS["the same in training"](place))
    assert str(error).endswith("left. Lower dict_size."), error
