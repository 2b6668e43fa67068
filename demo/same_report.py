"""Compares the reports of two runs of the same settings, such as on one and on several processes.

    python demo/same_report.py FOLDER OTHER [--tolerance 0.1]

Prints the main figures side by side, and ends with 1 if one differs by more than the tolerance: a
share of its value, or as much of a figure that is a share itself.
"""

import argparse
import sys
from pathlib import Path

from dictionary_learning.evaluation import read_report

FIGURES = ("fvu", "l0", "n_alive", "ce_recovered_zero", "kl")


def same_report() -> int:
    """Returns 0 if the reports agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.1, help="largest difference (default: 0.1)")
    known = parser.parse_args()
    one, other = (read_report(folder) for folder in (known.folder, known.other))
    names = [entry.name for entry in one.dictionaries]
    if names != [entry.name for entry in other.dictionaries]:
        sys.stdout.write("The runs have other dictionaries.\n")
        return 1
    n_wrong = 0
    sys.stdout.write(f"{'dictionary':<40} {'figure':<20} {'first':>10} {'second':>10}\n")
    for first, second in zip(one.dictionaries, other.dictionaries, strict=True):
        for figure in FIGURES:
            a, b = first.metrics.get(figure), second.metrics.get(figure)
            if a is None or b is None:
                continue
            differs = abs(a - b) > known.tolerance * max(abs(a), abs(b), float(figure != "l0") * 0.2)
            n_wrong += differs
            sys.stdout.write(f"{first.name:<40} {figure:<20} {a:>10.4g} {b:>10.4g}{'  differs' if differs else ''}\n")
    return min(n_wrong, 1)


if __name__ == "__main__":
    sys.exit(same_report())
