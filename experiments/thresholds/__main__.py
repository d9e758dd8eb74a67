"""Run the experiment: ``python -m experiments.thresholds``."""

import sys

from .run import main

sys.exit(main(sys.argv[1:]))
