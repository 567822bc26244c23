"""Picture files: checked, decoded, and brought to the size that the model sees.

In: a path, a URL or bytes. Out: (H, W, 3) uint8 RGB, then a (3, S, S) uint8 tensor, or ImageError.
Start at decode.py.
"""
