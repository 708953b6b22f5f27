"""Comparison of mitigations under equal conditions: the same trials and seeds, with intervals and tests."""
