"""This process: its device, its rank among others, its signals, its log and its locks.

In: what the command line, the environment and torchrun say. Out: device, World, Signals, RunLog.
Start at distributed.py (several processes) or device.py (one).
"""
