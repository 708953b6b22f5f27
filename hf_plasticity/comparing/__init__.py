"""Mitigations compared under equal conditions: the same trials, the same seeds, intervals and tests."""
