"""Map learning rates and clipping levels to final losses."""
