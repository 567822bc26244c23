"""Version of this package; no module below imports the package itself, whose door is on top."""

__version__ = "0.1.0"
