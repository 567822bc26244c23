"""exiftool and exiv2, of Debian: two programs that know nothing of ours, and read what it wrote."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from conftest import lacking


def run_tool(name: str, *arguments: object) -> str:
    """Run a program, and return what it printed; skip the test where this machine lacks it."""
    if shutil.which(name) is None:
        package = {"exiftool": "libimage-exiftool-perl"}.get(name, name)
        lacking(f"needs {name} (Debian's {package})")
    command = [name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read_by_exiftool(path: Path) -> tuple[list[str], list[str]]:
    """Return dc:subject and lr:hierarchicalSubject, as exiftool has them."""
    tags = ("-Subject", "-HierarchicalSubject")
    (row,) = json.loads(run_tool("exiftool", "-json", "-struct", *tags, path))
    return _as_list(row.get("Subject")), _as_list(row.get("HierarchicalSubject"))


def read_by_exiv2(path: Path) -> tuple[str, str]:
    """Return dc:subject and lr:hierarchicalSubject, as exiv2 prints them."""
    lines = run_tool("exiv2", "-PXkt", path).splitlines()
    rows = dict(line.split(maxsplit=1) for line in lines)
    return rows.get("Xmp.dc.subject", ""), rows.get("Xmp.lr.hierarchicalSubject", "")


def _as_list(value: Any) -> list[str]:
    """Return a list of texts; exiftool gives one text alone, and one of digits as a number."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [str(each) for each in values]
