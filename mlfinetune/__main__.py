"""`python -m mlfinetune`."""

from mlfinetune.cli import main

if __name__ == "__main__":
    main()
