"""`python -m dictionary_learning` is the command line."""

import sys

from dictionary_learning.cli import main

sys.exit(main())
