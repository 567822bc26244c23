"""data/batches."""
