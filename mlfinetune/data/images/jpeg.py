"""Which library decodes plain JPEGs: all use libjpeg-turbo, two of them without Pillow's copies.

    decoder() -> torchvision | torchcodec | None, Pillow then serves; and a line for the log

torchvision comes first while it has a decoder: it is loaded anyway and leaves EXIF alone.
Since 0.29 that decoder is deprecated for torchcodec's, which gives the same pixels as fast, but
takes a tenth of a second to import. Both refuse a truncated file.
"""

from collections.abc import Callable

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from mlfinetune.data.images.decode import JpegDecoder

_RGB = 3  # torchvision.io.ImageReadMode.RGB


def choose_jpeg_decoder() -> tuple[JpegDecoder | None, str]:
    """The function that `images.decode` is to use for plain JPEGs, and why that one."""
    # The operator itself: the function around it warns of its deprecation at every picture.
    operator = getattr(torch.ops.image, "decode_jpeg", None)
    if operator is not None:
        name = f"torchvision {torchvision.__version__} decodes JPEGs"
        return _on_arrays(lambda content: operator(content, _RGB, False)), name
    missing = f"torchvision {torchvision.__version__} has no JPEG decoder"
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError) as error:  # also of a version that does not load
        return None, f"Pillow decodes JPEGs: {missing}, and torchcodec: {error}"
    return _on_arrays(decode_jpeg), f"torchcodec decodes JPEGs: {missing}"


def _on_arrays(decode: Callable[[Tensor], Tensor]) -> JpegDecoder:
    """The same for arrays; (3, H, W), interleaved in memory, becomes (H, W, 3), uncopied."""

    def decode_array(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = decode(torch.from_numpy(content)).permute(1, 2, 0).numpy()
        return pixels

    return decode_array
