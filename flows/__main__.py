# PYTHON_ARGCOMPLETE_OK
"""`python -m flows` does the same as the console script `brevity`."""

import sys

from flows.cli import main

if __name__ == "__main__":
    sys.exit(main())
