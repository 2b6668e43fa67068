"""`python -m dictionary_learning` is the command line."""

import sys

try:
    from dictionary_learning.cli import main
except KeyboardInterrupt:
    sys.exit(130)

sys.exit(main())
