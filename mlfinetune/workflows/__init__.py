"""One file a verb; `run()` reads like a table of contents."""
