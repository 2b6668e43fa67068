"""Errors of the library in the words of the shell: arguments of Python are options there."""

import re
from collections.abc import Callable

_OPTIONS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\b\w+=\S+ \((--[\w-]+)(?: on the command line)?\)", r"\1"),
    (r"\bor resume='never'", "or leave out --resume and --resume-from"),
    (r"\bresume='auto'", "--resume"),
    (r"\bset dtype='(\w+)'", r"set --token-dtype \1"),
    (r"\bset dtype to the type", "set --token-dtype to the type"),
    (
        r"\b(on_bad_document|long_documents|rows|exhausted|end_of_data|padding_side|storage_dtype|bos|text_column)"
        r"='(\w+)'",
        lambda found: f"--{found[1].replace('_', '-')} {found[2]}",
    ),
    (r"\bpass chat=Chat\(template=\.\.\.\)", "pass --chat-template"),
    (r"\bset text_column to", "set --text-column to"),
    (r"\bset split\b", "set --split"),
    (r"\bset tokenizer= to a name or an object", "set --tokenizer to a name or a folder"),
    (r"\bgive (k|scale)=", r"give --\1 (of info and convert)"),
    (r"\bgive dict_class=", "give --dict-class (of info and convert)"),
    (r"\bpack=(True|False)", lambda found: f"--pack {found[1].lower()}"),
)
"""What advice says in Python, and what the shell says for it; capitals stay."""


def in_options(message: str) -> str:
    """Returns an error as the shell says it."""
    for pattern, instead in _OPTIONS:
        message = re.sub(pattern, lambda found, instead=instead: _said(found, instead), message, flags=re.IGNORECASE)
    return message


def _said(found: re.Match[str], instead: str | Callable[[re.Match[str]], str]) -> str:
    text = found.expand(instead) if isinstance(instead, str) else instead(found)
    return text[0].upper() + text[1:] if found[0][0].isupper() else text
