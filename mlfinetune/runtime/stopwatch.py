"""Seconds of the parts of a run, for the last line of its log.

    seconds: 3.1 start, 0.2 data, 1.9 learning, 0.4 saving

A part may come again, as validation after each epoch does; its seconds are added up.
"""

import time

LEAST_S = 0.05
"""Parts that took less are not named."""


class Stopwatch:
    """Wall time by part.

    Attributes:
        seconds: part -> its seconds so far, in the order in which parts first ended.
    """

    def __init__(self) -> None:
        """Start the first part now."""
        self.seconds: dict[str, float] = {}
        self._begun = time.monotonic()

    def lap(self, part: str) -> None:
        """End a part, and start the next one."""
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._begun
        self._begun = now

    def describe(self) -> str:
        """Return `3.1 start, 0.2 data`; empty where nothing took time."""
        parts = [(name, took) for name, took in self.seconds.items() if took >= LEAST_S]
        return ", ".join(f"{took:.1f} {name}" for name, took in parts)
