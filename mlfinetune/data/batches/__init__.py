"""Batches: examples in an order that depends on (seed, epoch) alone, decoded by worker processes.

In: a Manifest and a TransformSpec. Out: Batch (images or features, targets, indices).
Start at loader.py.
"""
