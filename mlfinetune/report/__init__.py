"""What a run's numbers mean, on one self-contained HTML page.

Evidence -> build -> Report -> with_pictures -> Report -> render -> str
                            -> suspect_rows  -> rows of suspects.csv
"""

from mlfinetune.report.content import Evidence, build
from mlfinetune.report.mistakes import suspect_rows
from mlfinetune.report.page import render
from mlfinetune.report.pictures import with_pictures
from mlfinetune.report.view import Bin, Calibration, Report

__all__ = [
    "Bin",
    "Calibration",
    "Evidence",
    "Report",
    "build",
    "render",
    "suspect_rows",
    "with_pictures",
]
