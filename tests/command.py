"""`mlfinetune ...` as a new process that knows the tiny network of these tests too."""

import multiprocessing
import os

from faults import tiny

from mlfinetune.cli import main

if __name__ == "__main__":
    assert tiny.resnet6_tiny
    multiprocessing.set_start_method(os.environ.get("MLFINETUNE_TEST_START"))
    main()
