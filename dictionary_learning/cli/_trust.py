"""What files name, and may be a stranger's choice: refused at once, or said again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dictionary_learning._run_folder import resolve_latest
from dictionary_learning._shell_words import option
from dictionary_learning._trained_on import TrainedText, check_named, check_reading, model_of, text_of
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.interop._saved import Saved


def untrusted(model: str | None, text: TrainedText | None) -> dict[str, str]:
    """Returns why files alone may not name a model or a text, by the option that does.

    Args:
        model: The language model, unless it is given.
        text: The text, without what is given.
    """
    checks: dict[str, Callable[[], None]] = {}
    if model is not None:
        checks["--model"] = lambda: check_named("model", "--model", model)
    if text is not None:
        data, reading = text.data, text.reading
        if data is not None:
            checks["--data"] = lambda: check_named("text", "--data", data)
        checks["--data-args"] = lambda: check_reading(reading.replace(mix=(), weights=()), "--data-args")
        checks["--mix"] = lambda: check_reading(reading.replace(data_args=()), "--mix")
    found: dict[str, str] = {}
    for name, check in checks.items():
        try:
            check()
        except ConfigError as error:
            found[name] = str(error)
    return found


def said_again(model: str | None, text: TrainedText | None) -> list[str]:
    """Returns the options by which a command is told what it would not read by files alone."""
    values: dict[str, Sequence[Any]] = {"--model": (model,)}
    if text is not None:
        values |= {"--data": (text.data,), "--data-args": text.reading.data_args, "--mix": text.reading.mix}
    return [word for name in untrusted(model, text) for word in option(name, *values[name])]


def load_trusted(places: Sequence[str], model: str | None, asked: Any, model_option: str = "--model") -> "list[Saved]":
    """Returns dictionaries whose files name no model and no text of a stranger's choice.

    Args:
        places: Folders of dictionaries or of runs, and repositories.
        model: The model, if it is given.
        asked: The arguments that say how text is read; None where none is.
        model_option: What gives the model.

    Raises:
        ConfigError: A model or a text is neither on the hub nor in this folder.
    """
    from dictionary_learning.cli._candidates import load_saved
    from dictionary_learning.dictionaries._serialization import read_config_file
    from dictionary_learning.interop._saved import own_folders

    def check(configs: Iterable[Mapping[str, Any]]) -> None:
        found: dict[str, str] = {}
        for config in configs:
            named, text = model_of(config), text_of(config)
            own = None if text is None or asked is None else _without(text, asked)
            found |= untrusted(None if model or named is None else named.name, own)
        if "--model" in found:
            found["--model"] = found["--model"].replace("Give --model", f"Give {model_option}")
        if found:
            raise ConfigError(" ".join(found.values()))

    # before weights are loaded, where the files are of this package and here
    check(read_config_file(folder) for place in places for folder in own_folders(resolve_latest(place)))
    saved = load_saved(places)
    check(one.config for one in saved)
    return saved


def _without(text: TrainedText, asked: Any) -> TrainedText | None:
    """Returns a text of files without what is given; None where another is read."""
    if asked.data not in (None, text.data):
        return None
    told: dict[str, Any] = {"data_args": ()} if asked.data_args else {}
    told |= {"mix": (), "weights": ()} if asked.mix else {}
    return text._replace(data=None if asked.data else text.data, reading=text.reading.replace(**told))
