"""Analysis of records: onsets, the scaling law, plots and reports. Nothing here imports torch."""
