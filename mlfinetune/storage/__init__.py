"""Bytes: read from a file, a tar or a URL; written whole or not at all; kept by key in a cache.

In: a name or a key. Out: an open binary file, a stamp that changes with the content, some bytes.
Start at files.py (reading), atomic.py (writing) or store.py (the cache).
"""
