"""Take a million steps, and watch time and memory."""
