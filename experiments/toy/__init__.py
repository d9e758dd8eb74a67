"""Run the published toy problems: quadratic, AdaGrad, regression."""
