"""What training, probes and diagnoses cost on the machine at hand: `recipes/benchmark.py`."""
