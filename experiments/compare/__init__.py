"""Compare clipping types with torch's SGD and Adam on tasks of several kinds."""
