"""Code that the experiments share: command line, files, machine, colours, data and models."""
