"""Time the steps of clipped optimizers beside torch's own and other packages."""
