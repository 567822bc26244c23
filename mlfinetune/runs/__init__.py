"""Files of a run directory: their names, how they are written, and how they are read back.

Checkpoint, ResumeState's content, Evaluation, Prediction -> files -> the same again.
Start at directory.py, which lists every file name.
"""
