"""Train a language model by DDP, FSDP2 or tensor parallel, and compare with one process."""
