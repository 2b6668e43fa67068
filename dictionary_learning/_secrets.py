"""Passwords and tokens, which stand in no config, log or error."""

import re

HIDDEN = "(not stored)"
"""What stands in place of a secret."""
_WORD = r"api_?key|access_?key(?:_?id)?|secret(?:_?key)?|password|passwd|pwd|credentials?|authorization"
_NAME = re.compile(rf"((use_auth_|hf_|auth_|access_|bearer_)?token|auth|(.*_)?({_WORD})|.*accesskeyid)", re.IGNORECASE)
"""Names of settings whose values are secret; `bos_token` is none."""
_IN_TEXT = (
    # name and password in an address, also one that was taken for a path
    (re.compile(r"(\w{2,}:/{1,2})[^/@\s]+(?=@)"), rf"\1{HIDDEN}"),
    # a field of an address
    (re.compile(r"([?&][\w-]*(?:token|key|secret|password|signature|sig)=)[^&\s]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic) [\w.~+/=-]{20,}"), rf"\1 {HIDDEN}"),
    # variables of a shell
    (re.compile(r"\b([A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|ACCESS_KEY|API_KEY)[A-Z0-9_]*=)[^\s&]+"), rf"\1{HIDDEN}"),
    # tokens that begin as those of Hugging Face, GitHub, OpenAI and Amazon do
    (re.compile(r"\b(?:hf_\w{16,}|gh[pousr]_\w{30,}|github_pat_\w{30,}|sk-[\w-]{32,}|AKIA[A-Z0-9]{16})\b"), HIDDEN),
)
"""Secrets in a text, and what stands there instead."""


def is_secret(name: str) -> bool:
    """Returns whether a setting or an option of this name holds a secret."""
    return _NAME.fullmatch(name.lstrip("-").replace("-", "_")) is not None


def without_secrets(text: str) -> str:
    """Returns a text without the passwords and tokens that can be told by their places."""
    key, separator, _ = text.partition("=")
    if separator and is_secret(key):
        return f"{key}={HIDDEN}"
    for pattern, instead in _IN_TEXT:
        text = pattern.sub(instead, text)
    return text
