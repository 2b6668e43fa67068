"""New processes for tests, which start at once: a server that has imported everything is forked for each.

A test that looks at what is imported, or at what a process does as it begins, starts its own.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

PRELOADED = [
    "dictionary_learning.training",
    "dictionary_learning.trainers",
    "transformers.models.llama.modeling_llama",
    "tests.tiny",
]
"""What takes seconds to import."""
TIMEOUT = 150
_SERVER = torch.multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(PRELOADED)


def process_of(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns a process, not yet started, in which a function of a module runs; the server has no threads yet."""
    return _SERVER.Process(target=function, args=arguments, daemon=True)


def start_script(
    script: str, *words: object, env: Mapping[str, str] | None = None, outputs: tuple[str, str] | None = None
) -> Any:
    """Returns a started process of a script; `outputs` are paths for standard output and standard error."""
    given = [str(word) for word in words]
    process = process_of(_run, script, given, dict(os.environ if env is None else env), os.getcwd(), outputs)
    process.start()
    return process


def run_script(script: str, *words: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Does what `subprocess.run([sys.executable, "-c", script, *words], ...)` does, and returns its output."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = os.path.join(folder, "out"), os.path.join(folder, "error")
        process = start_script(script, *words, env=env, outputs=outputs)
        process.join(TIMEOUT)
        assert process.exitcode is not None, "the script hangs"
        out, error = (Path(path).read_text() for path in outputs)
    assert process.exitcode == 0, error
    return subprocess.CompletedProcess(words, 0, out, error)


def _run(script: str, words: list[str], env: dict[str, str], place: str, outputs: tuple[str, str] | None) -> None:
    for number, path in enumerate(outputs or (), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(place)
    sys.argv = ["-c", *words]
    exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})
