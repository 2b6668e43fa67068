"""Reads thousands of damaged checkpoints, as the tests do with hundreds: each is read, or refused by an error of ours.

usage: python benchmarks/interop_fuzz.py [N] [--seed S]
"""

import argparse
import collections
import logging
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.interop.corrupting import ONE_OF_EACH, WAYS, read_corrupted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int, nargs="?", default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    draw, counts, slowest = random.Random(arguments.seed), collections.Counter(), 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as work:
        for n in range(arguments.n):
            case = (draw.choice(ONE_OF_EACH), draw.randrange(6), draw.choice(WAYS), draw.randrange(1 << 30))
            start = time.process_time()
            try:
                counts[read_corrupted(*case, Path(work))] += 1
            except BaseException:
                print(f"failed on {case} after {n} files")
                raise
            slowest = max(slowest, time.process_time() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{arguments.n} files: {dict(counts)}; slowest {slowest:.2f} s; memory grew by {grown:.0f} MiB")


if __name__ == "__main__":
    main()
