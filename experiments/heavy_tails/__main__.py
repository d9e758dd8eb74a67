"""Run the experiment: ``python -m experiments.heavy_tails``."""

import sys

from .run import main

sys.exit(main(sys.argv[1:]))
