"""Compare restart schedules on two problems."""
