"""The engine: how a step is measured, clipped and remembered. Private: import nothing from here."""
