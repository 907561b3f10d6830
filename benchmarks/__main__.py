"""``python -m benchmarks`` in a checkout: the runner of the package, ``avalanche_contrastive.bench``."""

import sys

from avalanche_contrastive.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
