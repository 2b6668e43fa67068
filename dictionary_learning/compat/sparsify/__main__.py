"""`python -m dictionary_learning.compat.sparsify MODEL DATASET ...`, also under torchrun."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from dictionary_learning import parallel
from dictionary_learning.compat.sparsify._options import RunConfig, data_args, parse, with_token
from dictionary_learning.compat.sparsify.data import MemmapDataset, chunk_and_tokenize
from dictionary_learning.compat.sparsify.trainer import Trainer
from dictionary_learning.data._hub import load_rows
from dictionary_learning.errors import ConfigError, DictionaryLearningError, ModelError
from dictionary_learning.models import load_model, load_tokenizer

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 2 for an error, of which one line is logged."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        run(parse(sys.argv[1:] if arguments is None else list(arguments)))
    except DictionaryLearningError as error:
        logger.error("%s: %s", type(error).__name__, " ".join(str(error).split()))
        return 2
    return 0


def run(args: RunConfig) -> None:
    """Loads the model and the data, and trains."""
    with_token(args.hf_token)
    args.hf_token = None
    if args.ctx_len < 1:
        raise ConfigError(f"Got --ctx_len {args.ctx_len}; it is at least 1.")
    # before the processes connect: those that are connected wait for each other for minutes only
    dataset = _dataset(args)
    world = parallel.start()  # before the model is loaded: each process has a device of its own
    model = load_model(args.model, revision=args.revision, **_quantization(args))
    if world.is_first:
        logger.info("Training on '%s' (split '%s'): %d sequences.", args.dataset, args.split, len(dataset))
    Trainer(args, dataset, model, resume=args.resume).fit()


def _quantization(args: RunConfig) -> dict[str, Any]:
    if not args.load_in_8bit:
        return {}
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}


def _dataset(args: RunConfig) -> Any:
    if args.dataset.endswith(".bin"):
        return MemmapDataset(args.dataset, args.ctx_len, args.max_examples)
    found = load_rows(args.dataset, args.split, **data_args(args.data_args))
    if "input_ids" not in found.column_names:
        try:
            tokenizer = load_tokenizer(args.model, args.revision)
        except ModelError as error:
            raise ConfigError(f"'{args.model}' has no tokenizer. Give data with a column input_ids.") from error
        found = chunk_and_tokenize(found, tokenizer, max_seq_len=args.ctx_len, text_key=args.text_column)
    found = found.shuffle(args.shuffle_seed).with_format("torch")
    return found if args.max_examples is None else found.select(range(min(args.max_examples, len(found))))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
