"""Entry point of ``python -m avalanche_contrastive.bench``."""

import sys

from avalanche_contrastive.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
