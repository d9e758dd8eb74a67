"""Provide what the experiments share: command line, files, machine, look, data and models."""
