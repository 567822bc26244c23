"""Predicting: a checkpoint and pictures become labels and probabilities.

run directory, checkpoint or URL -> Backend -> Tagger; pictures of any kind -> TaggedImage
Start at tagger.py, the door for the command line and for Python; backend.py is what computes.
"""
