"""Run files: the options of a command in YAML, TOML or JSON, by their names."""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dictionary_learning._run_folder import RUN_FILE
from dictionary_learning._secrets import without_secrets
from dictionary_learning._text_reading import mapping_of_part, words_of_pairs, words_of_part
from dictionary_learning.cli._parser import CONFIG
from dictionary_learning.errors import ConfigError

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
"""Numbers that YAML 1.1 takes for words: 1e-3 has no point, 1.0e3 no sign."""


_MERGE = "tag:yaml.org,2002:merge"
"""The key <<, which may be there several times."""


def file_named_in(words: Iterable[str]) -> tuple[str | None, list[str]]:
    """Returns the run file that a command names, and its other words.

    Raises:
        ConfigError: The option has no value, or is there twice.
    """
    found: list[str] = []
    others: list[str] = []
    left = iter(words)
    for word in left:
        option, equals, value = word.partition("=")
        if option != CONFIG:
            others.append(word)
            continue
        found.append(value if equals else next(left, ""))
        if not found[-1] or found[-1].startswith("--"):
            raise ConfigError(f"{CONFIG} names no file. Give a YAML, TOML or JSON file, as {CONFIG} run.yaml.")
    if len(found) > 1:
        raise ConfigError(f"Got {CONFIG} more than once. Give one file.")
    return (found[0] if found else None), others


def read_file(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a YAML, TOML or JSON file; words such as 1e-3 are numbers.

    Raises:
        ConfigError: It cannot be read, or is no mapping.
    """
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8")
        # JSON is YAML
        found: Any = _read_toml(text) if place.suffix.lower() == ".toml" else yaml.load(text, _Loader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # also what tomllib raises
        said = " ".join(str(error).split())
        raise ConfigError(f"'{path}' cannot be read ({said}). Give a YAML, TOML or JSON file.") from error
    if not isinstance(found, Mapping):
        raise ConfigError(f"'{path}' is no mapping from names to values. Write lines such as 'k: 32'.")
    values: dict[str, Any] = {}
    for key, value in _numbers(found).items():
        name = str(key).replace("-", "_")
        if name in values:
            raise ConfigError(f"'{path}' has '{name}' twice, and only the last would count. Give it once.")
        values[name] = value
    if (mix := values.get("mix")) is not None:
        values["mix"] = [words_of_part(part) for part in (mix if isinstance(mix, list) else [mix])]
    for name in ("data_args", "model_args"):
        if name in values:
            values[name] = words_of_pairs(values[name])
    return values


def text_of_run_file(command: str, options: Mapping[str, Any]) -> str:
    """Returns what was given to a command as a file with which it can be given again."""
    head = f"# dictionary-learning {command} {CONFIG} {RUN_FILE}\n"
    options = dict(options)
    if "mix" in options:  # as mappings, which leave no doubt where a value ends
        options["mix"] = [mapping_of_part(words) for words in options["mix"]]
    return head + yaml.safe_dump(_without_secrets(options), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Builds plain values only, and refuses a key that a mapping has twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(getattr(key, "value", ""))
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE and name in seen:
                place = f"line {key.start_mark.line + 1}"
                raise yaml.YAMLError(f"'{name}' is there twice, again in {place}, and only the last would count")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _read_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    return tomllib.loads(text)


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_secrets(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value
