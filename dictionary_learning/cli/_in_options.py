"""Errors of the library in the words of the shell: arguments of Python are options there."""

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Generator

from dictionary_learning.cli._parser import option_of

_PHRASES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\b\w+=\S+ \((--[\w-]+)(?: on the command line)?\)", r"\1"),
    (r"\bor resume='never'", "or leave out --resume and --resume-from"),
    (r"\bresume='auto'", "--resume"),
    (r"\bset dtype='int8'", "set --storage-dtype int8"),
    (r"\bin a smaller dtype \('int8'\)", "in a smaller type (--storage-dtype int8)"),
    (r"\bset dtype='(\w+)'", r"set --token-dtype \1"),
    (r"\bset dtype to the type", "set --token-dtype to the type"),
    (r"\bpass chat=Chat\(template=\.\.\.\)", "pass --chat-template"),
    (r"\bset split\b", "set --split"),
    (r"\bset tokenizer= to a name or an object", "set --tokenizer to a name or a folder"),
    (r"\bamong the sites of the data too", "by --sites too"),
    (r"\bpass tokenizer= to load_model, with the model", "give --tokenizer"),
    (r"\bwrite them with collect_contexts", "write them with the command contexts"),
    (r"\b(?:load_model|ActivationBuffer|trainSAE)\(\.\.\., ([^()]*)\)", r"\1"),
    (r"\bby format=", "by --format (of info and convert)"),
    (r"\bgive (k|scale)=", r"give --\1 (of info and convert)"),
    (r"\bgive dict_class=", "give --dict-class (of info and convert)"),
)
"""What advice says in Python where the shell has another word for it; capitals stay."""
_NAMES = re.compile(
    r"(?<![\w'\"./\[-])(?P<argument>\w+)=(?P<value>'[^']*'|\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|[^\s,;()]*\w|)"
    r"|(?<!\w)'[^']*'(?!\w)"
    r"|\b[A-Z]\w+(?:\.Config|Config|Arguments)\.(?P<field>\w+)"
    r"|(?<![\w\"./\[=-])(?P<name>\w+_\w+)(?![\w\"\]=(]|[./-]\w)"
)
"""Arguments of Python with their value, fields of configs, and names that are no other words. In
quotes, places and paths they are parts of files."""
_VALUE_OF_AN_OPTION = re.compile(r"--[\w-]+ $")


def in_options(message: str, options: Collection[str] = ()) -> str:
    """Returns an error as the shell says it.

    Args:
        message: The error.
        options: The fields that the command has options for.
    """
    message, name, command = message.partition("dictionary-learning ")  # in which are options already
    for pattern, instead in _PHRASES:
        message = re.sub(pattern, lambda found, instead=instead: _said(found, instead), message, flags=re.IGNORECASE)

    def named(found: re.Match[str]) -> str:
        field = found["argument"] or found["field"] or found["name"]
        if field not in options or _VALUE_OF_AN_OPTION.search(found.string[: found.start()]):
            return found[0]
        return f"{option_of(field)} {_words(found['value'] or '')}".rstrip()

    return _NAMES.sub(named, message) + name + command


@contextlib.contextmanager
def warning_in_options(options: Collection[str]) -> Generator[None]:
    """Makes warnings of the library, too, say options inside a `with` block."""

    def translate(record: logging.LogRecord) -> bool:
        is_ours = record.name.startswith("dictionary_learning.") and ".cli" not in record.name
        if is_ours and record.levelno == logging.WARNING:
            record.msg, record.args = in_options(record.getMessage(), options), ()
        return True

    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(translate)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(translate)


def _words(value: str) -> str:
    """Returns a value of Python as words."""
    if value in ("True", "False", "None"):
        return value.lower()
    return re.sub(r"'(\w+)': ", r"\1=", value).strip("()[]{}").replace("'", "").replace(",", "").strip()


def _said(found: re.Match[str], instead: str | Callable[[re.Match[str]], str]) -> str:
    text = found.expand(instead) if isinstance(instead, str) else instead(found)
    return text[0].upper() + text[1:] if found[0][0].isupper() else text
