"""Record gradient norms and losses of a language model, with and without clipping."""
