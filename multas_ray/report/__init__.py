"""Pictures, plots and the self-contained report."""
