"""One file for each command; `run()` reads like a table of contents.

a frozen request (or a Config) -> run(...) -> files, and a frozen result that the command prints
Start at evaluate.py, the shortest that uses a model; train.py is the longest.
"""
