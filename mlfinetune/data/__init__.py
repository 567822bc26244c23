"""Examples: what the user's files say, and batches of it.

Tables, folders, shards and a Config -> Manifests of train and val -> Batches of images and targets.
Start at load.py (Config -> Splits), then read.py; readers/ has one file per format.
"""
