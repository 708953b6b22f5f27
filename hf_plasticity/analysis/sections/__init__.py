"""The sections of a report: each is a function in a file of its own, and a line in `report.py`."""
