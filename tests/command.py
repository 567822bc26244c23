"""`mlfinetune ...` as a new process that knows the tiny network of these tests too."""

import multiprocessing
import os

from mlfinetune.cli import main
from mlfinetune.runtime.loading import loading_modules

with loading_modules():
    from faults import tiny

if __name__ == "__main__":
    assert tiny.resnet6_tiny
    multiprocessing.set_start_method(os.environ.get("MLFINETUNE_TEST_START"))
    main()
