"""`python -m stitch_utils` is the command `stitch-book`; `torchrun -m stitch_utils` runs it in several processes."""

import sys

from .book.cli import main

if __name__ == "__main__":
    sys.exit(main())
