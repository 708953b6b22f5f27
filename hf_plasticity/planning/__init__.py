"""Estimate the cost of a run, and prepare its text, before the run starts."""
