"""The command line: `dictionary-learning COMMAND`.

A command imports torch, and all that needs it, when it runs, so that `--help` answers at once.
Results go to standard output, messages to standard error.
"""

import argparse
import contextlib
import gc
import importlib
import logging
import os
import shlex
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from dictionary_learning._border import said
from dictionary_learning._run_folder import COMMAND
from dictionary_learning._stop_request import ending_at_once, interrupt_behind
from dictionary_learning.cli._arguments import config_parser
from dictionary_learning.cli._in_options import in_options, warning_in_options
from dictionary_learning.cli._output import as_json, flush_results
from dictionary_learning.cli._parser import IMPORT, JSON, QUIET, TRACEBACK, Parser, modules_in, without
from dictionary_learning.cli._run_file import file_named_in, read_file
from dictionary_learning.cli._stopping import saying_what_goes_on
from dictionary_learning.errors import ConfigError, DictionaryLearningError, Stopped, UnknownNameError

logger = logging.getLogger(__name__)

COMMANDS = {
    "train": "train dictionaries on a language model, and evaluate them",
    "sweep": "train a grid of methods and settings on one stream, and compare them",
    "benchmark": "train methods on activations with known features, and score them",
    "evaluate": "evaluate saved dictionaries",
    "downstream": "measure what dictionaries are good for: probing, absorption and others",
    "compare": "say which differences between dictionaries are real",
    "contexts": "find where each latent of saved dictionaries is active",
    "dashboard": "write pages about latents, which a browser opens",
    "serve": "try out latents in a browser: read them, change them, generate",
    "reproduce": "repeat a run, and compare its dictionaries",
    "plan": "show what training on several GPUs would need",
    "cache": "write activations to disk",
    "pretokenize": "tokenize a text once, and store the contexts",
    "explain": "say in words what latents react to, and score the words",
    "export": "write latents, or transcoders of all layers, for other tools",
    "info": "show what this machine will use, or what is saved at a path",
    "convert": "convert dictionaries between the formats of packages",
    "pretrained": "list public releases of dictionaries",
    "completion": "print the script by which a shell completes options",
}
"""Each command, and what it does."""


_OF_THE_START = {"--save-dir": True, "--overwrite": False, "--resume": False, "--resume-from": True}
"""Options that say where a run is and how it starts, and not which run it is."""
_GO_ON = ("train", "sweep", "benchmark")
"""Commands that a signal ends with the command that goes on."""
_CONTINUE = ("cache", "contexts", "explain", "pretokenize")
"""Commands that go on with what they find in their folder, or leave none behind."""
STOPPED = 75
"""Exit status of a run that a signal stopped: EX_TEMPFAIL of sysexits.h, "try again later"."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    It is 2 for an error, of which one line is logged, or with `--traceback` all; and 75 for a run
    that was stopped and can be resumed.
    """
    is_process = arguments is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell closed it, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (until the process ends)
    if is_process and (QUIET in sys.argv or not sys.stderr.isatty()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars of transformers write over themselves
    given = list(sys.argv[1:] if arguments is None else arguments)
    arguments = [word for word in given if word not in (TRACEBACK, QUIET, JSON)]
    whole = TRACEBACK in given
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    level = logging.WARNING if QUIET in given else logging.INFO
    logging.getLogger("dictionary_learning").setLevel(level)
    for noisy in ("httpx", "datasets", "transformers", "gguf"):  # one line for each request and file
        logging.getLogger(noisy).setLevel(logging.WARNING)
    token, style = COMMAND.set(tuple(without(arguments, _OF_THE_START))), as_json.set(JSON in given)
    options: set[str] = set()
    try:
        with warning_in_options(options), _stopping(arguments):
            status = _run(arguments, is_process, options)
        flush_results()
        return status
    except SystemExit:  # of --help
        flush_results()
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (of another package, or a fault of this one)
        if (interrupt := interrupt_behind(error)) is None:
            return _failed(error, arguments, options, whole)
        if not isinstance(interrupt, Stopped):
            logger.error("Interrupted.")
            return 130
        command = shlex.join(interrupt.command or ())
        going_on = f"What goes on is:\n  {command}" if command else "The same command goes on."
        logger.error("%s %s", interrupt.said, going_on)
        return STOPPED
    finally:
        COMMAND.reset(token)
        as_json.reset(style)


def _stopping(arguments: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which signals end a command, from its first moment to its last."""
    command = next(iter(modules_in(arguments)[1]), None)
    if command not in (*_GO_ON, *_CONTINUE):
        return ending_at_once((signal.SIGINT,))
    # until the command knows its folder, what it did can be done again
    return saying_what_goes_on(lambda: ("", arguments if command in _GO_ON else ()))


def _failed(error: BaseException, arguments: Sequence[str], options: Collection[str], whole: bool) -> int:
    """Logs an error in a line, or with `--traceback` all of it."""
    if isinstance(error, DictionaryLearningError):
        text = " ".join([*str(error).split(), *_notes(error)])
        logger.error("%s: %s", type(error).__name__, in_options(text, options), exc_info=whole and error)
    else:
        failed = " ".join([*arguments[:1], "failed:", said(error), *_notes(error), TRACEBACK, "shows where."])
        logger.error(failed, exc_info=whole and error)
    return 2


def _notes(error: BaseException) -> Sequence[str]:
    """Returns what was added to an error on its way; nothing before Python 3.11."""
    return getattr(error, "__notes__", ())


def _run(arguments: list[str], is_process: bool, known: set[str]) -> int:
    """Runs a command, whose options `known` gets."""
    modules, arguments = modules_in(arguments)
    for module in modules:
        _import(module)
    if not arguments or arguments[0] in ("-h", "--help"):
        parser = _overview()
        parser.print_help(sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    command, *options = arguments
    if command not in COMMANDS:
        raise UnknownNameError("command", command, COMMANDS)
    # those that are described by a file have their options in it
    path, options = (None, options) if command in ("sweep", "benchmark") else file_named_in(options)
    values = {} if path is None else read_file(path)
    with _imports(is_process):
        parser = build_parser(command, options, values)
    known |= {action.dest for action in parser._actions if action.option_strings}
    if path is not None:
        parser.take(values, path)
    namespace = parser.read(options)
    if command not in ("train", "cache"):
        from dictionary_learning.parallel import refuse_several

        refuse_several(f"dictionary-learning {command}", "Start it without torchrun.")
    return namespace.run(namespace) or 0


@contextlib.contextmanager
def _imports(is_process: bool) -> Iterator[None]:
    """Stops garbage collection while modules are imported: it would look through all of torch.

    In a process of our own it never does, as what is imported stays. Elsewhere, what is alive is
    not ours.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_process:
            gc.freeze()
        if was_enabled:
            gc.enable()


def build_parser(command: str, options: Sequence[str], values: dict[str, Any] | None = None) -> Parser:
    """Returns the parser of a command; that of `train` depends on the method that is named.

    Args:
        command: the command.
        options: its words.
        values: what a run file gives, of which the method is taken out.
    """
    if command == "train":
        from dictionary_learning.cli import _train

        return _train.build_parser(options, values)
    if command == "benchmark":
        from dictionary_learning.cli import _benchmark

        return _benchmark.build_parser(options)
    from dictionary_learning.cli._commands import ARGUMENTS

    return config_parser(command, ARGUMENTS[command])


def _overview() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    return argparse.ArgumentParser(
        prog="dictionary-learning",
        usage=f"%(prog)s [{IMPORT} MODULE] COMMAND ...",
        description="Train, evaluate and use dictionaries of activations.",
        epilog="commands (each has a --help of its own):\n"
        + "\n".join(f"  {name.ljust(width)}  {about}" for name, about in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _import(module: str) -> None:
    """Imports a module of the user's, which registers trainers or nonlinearities."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed command does not look there
    try:
        importlib.import_module(module.removesuffix(".py"))
    except Exception as error:  # whatever the module does when it runs
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{IMPORT} {module} failed ({said}). Give a module that Python can import from here, as my_method for "
            "my_method.py."
        ) from error
