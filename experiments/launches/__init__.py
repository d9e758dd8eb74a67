"""Count the operations that a step launches on an accelerator."""
