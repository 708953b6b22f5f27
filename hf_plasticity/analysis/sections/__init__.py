"""The sections of a report: each is a function in a separate file, and a line in `report.py`."""
