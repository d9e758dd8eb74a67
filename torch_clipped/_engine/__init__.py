"""Engine that measures, clips and records a step. Private: import nothing from here."""
