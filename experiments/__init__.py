"""Experiments on clipped optimizers: ``python -m experiments NAME``."""
