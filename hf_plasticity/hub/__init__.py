"""Runs on the Hub: a repository for each run, `main` with all records, and a branch for each probed checkpoint."""

from .loading import load_probe_checkpoint, load_run


__all__ = ["load_probe_checkpoint", "load_run"]
