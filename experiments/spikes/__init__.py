"""Corrupt single batches, and measure how training recovers."""
