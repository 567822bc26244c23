"""Small products have one thread, large ones all, and the number before comes back."""

from collections.abc import Iterator

import pytest
import torch

from mlfinetune.runtime.threads import FEWEST_OPERATIONS, ThreadChooser


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    """A number that no test machine has by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_the_product_decides() -> None:
    """A large product inside of a small one has all threads as well."""
    threads = ThreadChooser()
    with threads.threads_for(FEWEST_OPERATIONS - 1):
        assert torch.get_num_threads() == 1
        with threads.threads_for(FEWEST_OPERATIONS):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_the_number_comes_back_after_an_error() -> None:
    """Ctrl-C comes in the middle of a product too."""
    with pytest.raises(KeyboardInterrupt), ThreadChooser().threads_for(1):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 3
