"""Tensors and lists of pictures, as torch and users have them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.errors import DataError, ImageError
from mlfinetune.predicting.pictures import PictureReader, list_pictures

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.fixture
def reader() -> PictureReader:
    return PictureReader(TransformSpec(32, "squash", 10**6), torch.device("cpu"))


def test_tensors_have_their_channels_first(reader: PictureReader) -> None:
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    np.testing.assert_array_equal(reader.read_pixels(tensor, "x"), RGB)
    np.testing.assert_array_equal(reader.read_pixels(tensor[:1], "x")[..., 2], RGB[..., 0])
    np.testing.assert_array_equal(reader.read_pixels(tensor[0], "x")[..., 1], RGB[..., 0])
    for wrong, reason in (
        (tensor.bfloat16(), "a tensor of bfloat16; wanted uint8"),
        (torch.from_numpy(RGB), r"a tensor of shape \(5, 7, 3\); wanted \(3, height, width\)"),
    ):
        with pytest.raises(ImageError, match=f"^x: {reason}"):
            reader.read_pixels(wrong, "x")


def test_one_is_a_list_of_one(trained: Path) -> None:
    """A stack is its pictures; the path of a folder or a glob those that the command would take."""
    assert list_pictures(RGB) == [RGB]
    assert len(list(list_pictures(np.stack([RGB] * 4)))) == 4
    assert len(list(list_pictures(torch.zeros(4, 3, 5, 7, dtype=torch.uint8)))) == 4
    images = trained / "images"
    assert list(list_pictures(images)) == sorted(map(str, images.iterdir()))
    assert list(list_pictures(f"{images}/000*.jpg")) == sorted(map(str, images.glob("000*.jpg")))
    with pytest.raises(DataError, match="no file matches"):
        list_pictures("none*.jpg")
    for one in (str(images / "0000.jpg"), "none.jpg", "https://host/a[1].jpg"):
        assert list(list_pictures(one)) == [one]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("threads", [1, 4])
def test_batches_in_order(reader: PictureReader, count: int, threads: int) -> None:
    """Whatever the number of pictures and of threads; each knows its name and place."""
    reader._threads = threads
    images = [np.full((4, 4, 3), number, np.uint8) for number in range(count)]
    images[2:3] = [np.zeros((0, 0, 3), np.uint8)] * (count > 2)
    batches = list(reader.stream(images, 4))
    assert [name for names, _ in batches for name in names] == [
        f"images[{number}]" for number in range(count)
    ]
    read = [
        (start * 4 + index, int(image[0, 0, 0]))
        for start, (_, batch) in enumerate(batches)
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True)
    ]
    assert read == [(number, number) for number in range(count) if number != 2]
