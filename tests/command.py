"""`mlfinetune ...` as a new process that knows the tiny network of these tests too."""

from faults import tiny

from mlfinetune.cli import main

if __name__ == "__main__":
    assert tiny.resnet6_tiny
    main()
