"""`python -m mlfinetune`."""

from mlfinetune.cli import main

main()
