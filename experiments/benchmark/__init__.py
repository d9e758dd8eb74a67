"""Time the steps of clipped optimizers beside those of torch and other packages."""
