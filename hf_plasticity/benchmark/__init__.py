"""The speed of training, probes and diagnoses on this machine: `recipes/benchmark.py`."""
