"""One self-contained HTML page that explains the numbers of a run.

Evidence -> build -> Report -> place_maps, read_pictures -> Report -> render -> HTML;
Report -> suspects.csv.
Start at write.py, which does all of it for a folder; content.py computes what the page says.
"""

from mlfinetune.report.content import Evidence, build
from mlfinetune.report.heat import MapSource, choose_most, place_maps
from mlfinetune.report.page import render
from mlfinetune.report.pictures import read_pictures
from mlfinetune.report.suspects import list_suspect_rows
from mlfinetune.report.view import Bin, Calibration, Report

__all__ = [
    "Bin",
    "Calibration",
    "Evidence",
    "MapSource",
    "Report",
    "build",
    "choose_most",
    "list_suspect_rows",
    "place_maps",
    "read_pictures",
    "render",
]
