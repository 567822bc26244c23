"""One file for each command; its `run()` lists the steps of the command in order.

a frozen request (or a Config) -> run(...) -> files, and a frozen result that the command prints
Start at evaluate.py, the shortest that uses a model; train.py is the longest.
"""
