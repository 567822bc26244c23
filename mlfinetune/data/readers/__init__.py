"""Readers: one file per data format.

A file or folder and SourceOptions -> Table, with its faults.
Start at detect.py, which finds the format; csv_table.py and columns.py read the commonest one.
"""
