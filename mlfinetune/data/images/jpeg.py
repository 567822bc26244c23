"""The fastest decoder of plain JPEGs that is installed.

    choose_jpeg_decoder -> torchvision | torchcodec | None (Pillow decodes); and a line for the log

All three use libjpeg-turbo; Pillow copies the pixels more often. torchvision comes first: it is
loaded anyway, and applies no EXIF turn. Since 0.29 its decoder is deprecated in favor of
torchcodec's, which gives the same pixels as fast, but takes 0.1 s to import. Both refuse a
truncated file.
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
    """Return the decoder of plain JPEGs for `decode_image`, and the reason for the log.

    The decoder is None where Pillow has to decode.
    """
    # The operator itself: torchvision's function warns of its deprecation at every picture.
    operator = getattr(torch.ops.image, "decode_jpeg", None)
    if operator is not None:
        name = f"torchvision {torchvision.__version__} decodes JPEGs"
        return _wrap_for_arrays(lambda content: operator(content, _RGB, False)), name
    missing = f"torchvision {torchvision.__version__} has no JPEG decoder"
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError) as error:  # not installed, or does not load
        return None, f"Pillow decodes JPEGs: {missing}, and torchcodec: {error}"
    return _wrap_for_arrays(decode_jpeg), f"torchcodec decodes JPEGs: {missing}"


def _wrap_for_arrays(decode: Callable[[Tensor], Tensor]) -> JpegDecoder:
    """Turn a decoder of tensors, (n,) -> (3, H, W), into one of arrays, (n,) -> (H, W, 3).

    Nothing is copied: the decoder's pixels are interleaved in memory already.
    """

    def decode_array(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = decode(torch.from_numpy(content)).permute(1, 2, 0).numpy()
        return pixels

    return decode_array
