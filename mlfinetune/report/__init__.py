"""One self-contained HTML page that explains the numbers of a run.

Evidence -> build -> Report -> read_pictures -> Report -> render -> HTML; Report -> suspects.csv.
Start at write.py, which does all of it for a folder; content.py computes what the page says.
"""

from mlfinetune.report.content import Evidence, build
from mlfinetune.report.mistakes import list_suspect_rows
from mlfinetune.report.page import render
from mlfinetune.report.pictures import read_pictures
from mlfinetune.report.view import Bin, Calibration, Report

__all__ = [
    "Bin",
    "Calibration",
    "Evidence",
    "Report",
    "build",
    "list_suspect_rows",
    "read_pictures",
    "render",
]
