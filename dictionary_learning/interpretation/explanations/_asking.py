"""Questions put to a judge, several at a time; what was answered before is not asked again."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from dictionary_learning._http import Refused
from dictionary_learning.errors import ModelError
from dictionary_learning.interpretation.explanations._answers import Answers
from dictionary_learning.interpretation.explanations._judges import Judge
from dictionary_learning.interpretation.explanations._prompts import Prompt

logger = logging.getLogger(__name__)


class Asking:
    """Puts questions to judges, keeps the answers, and counts what is odd.

    Args:
        answers: What was answered before, and gets what is answered now.
    """

    def __init__(self, answers: Answers):
        self.answers = answers
        self.odd: Counter[str] = Counter()
        """Answers that could not be read, and requests that were refused, by kind of question."""
        self.n_asked = 0

    def ask(self, judge: Judge, prompts: Sequence[Prompt]) -> list[str]:
        """Returns an answer to each question; empty where the judge refused it.

        Raises:
            ModelError: The judge cannot be asked, or refused every question.
        """
        keys = [prompt.key(judge.name) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self.answers}
        pairs = list(missing.items())
        batches = [pairs[n : n + judge.batch_size] for n in range(0, len(pairs), judge.batch_size)]
        refused = 0
        for batch, found in _each(judge, batches):
            if isinstance(found, Refused):
                refused += len(batch)
                self.odd.update(f"{prompt.kind} (refused)" for _, prompt in batch)
                if refused == len(batch):
                    logger.warning("%s", found)  # of those that follow, the number is told
                if refused == len(pairs):
                    raise ModelError(f"Every question was refused: {found}") from found
                continue
            for (key, prompt), answer in zip(batch, found, strict=True):
                about = {"judge": judge.name, "latent": prompt.latent, "kind": prompt.kind}
                self.answers.add(key, answer, about)
                self.n_asked += 1
        return [self.answers.get(key) for key in keys]


_Batch = list[tuple[str, Prompt]]


def _each(judge: Judge, batches: Sequence[_Batch]) -> Iterator[tuple[_Batch, list[str] | Refused]]:
    """Yields the answers of each batch, as they come."""
    left = iter(batches)
    failed: BaseException | None = None
    with ThreadPoolExecutor(judge.n_parallel) as pool:
        running: dict[Future[list[str] | Refused], _Batch] = {}
        while True:
            # no more than are answered at once: after an error, no others are paid for
            while failed is None and len(running) < judge.n_parallel and (batch := next(left, None)) is not None:
                running[pool.submit(_complete, judge, batch)] = batch
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                batch, failed = running.pop(done), done.exception() or failed
                if done.exception() is None:
                    yield batch, done.result()
    if failed is not None:
        raise failed


def _complete(judge: Judge, batch: _Batch) -> list[str] | Refused:
    try:
        answers = judge.complete([prompt for _, prompt in batch])
    except Refused as error:
        return error
    if len(answers) != len(batch) or not all(isinstance(answer, str) for answer in answers):
        raise ModelError(f"{judge.name} gave no answer to each of {len(batch)} questions. Return a list of strings.")
    return answers
