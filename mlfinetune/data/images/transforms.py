"""A decoded picture becomes the model's uint8 square, as a TransformSpec says.

    (H, W, 3) uint8 -> build_eval_transform:  squash | crop | pad          -> (3, S, S) uint8
                    -> build_train_transform: random crop, flip, ..., seed -> (3, S, S) uint8

The model normalizes: batches stay uint8 until they are on the device. Pixels stay interleaved
(channels last in memory), as decoders give them, until they are resized: torch resizes such uint8
with AVX2 directly, and would first copy a large picture that lies in planes.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class TransformSpec:
    """Settings by which a decoded picture becomes the model's input; part of every checkpoint.

    Attributes:
        image_size: S, the side of the square input in pixels.
        resize: evaluation: `squash` the whole picture to the square, `crop` its center, or `pad`
            the shorter side.
        max_pixels: a picture with more is refused before it is decoded.
        mean, std: of RGB in [0, 1], on the training set of the pretrained weights.
        crop_scale: training: least and largest share of the area that a random resized crop keeps.
        horizontal_flip: training: probability of a mirror image.
        color_jitter: training: strength of brightness, contrast and saturation jitter, 0 to 1.
        rand_augment: training: number of RandAugment operations for each picture.
        interpolation: `bilinear` or `bicubic`, of every resize.
        crop_share: evaluation: share of the shorter side that `crop` keeps; torchvision's
            convention is 224 / 256.
    """

    image_size: int
    resize: str
    max_pixels: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_scale: tuple[float, float] = (1.0, 1.0)
    horizontal_flip: float = 0.0
    color_jitter: float = 0.0
    rand_augment: int = 0
    interpolation: str = "bilinear"
    crop_share: float = 224 / 256


_DECODE_MARGIN = 2  # a JPEG decoded at a smaller size keeps twice the pixels a side it needs
_MIN_ASPECT = 3 / 4  # least ratio of the sides of RandomResizedCrop's crops


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Return a (3, H, W) view of an (H, W, 3) array."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def compute_min_decoded_side(spec: TransformSpec, *, training: bool) -> int:
    """Return the shortest side in pixels at which a JPEG may be decoded without visible loss.

    It is twice what the resize needs; in training twice what the smallest random crop needs.
    Example: 448 for `squash` to 224 pixels.
    """
    if training and spec.crop_scale != (1.0, 1.0):
        smallest_crop = math.sqrt(spec.crop_scale[0] * _MIN_ASPECT)  # share of the shorter side
        return math.ceil(_DECODE_MARGIN * spec.image_size / smallest_crop)
    if spec.resize == "crop":
        return _DECODE_MARGIN * round(spec.image_size / spec.crop_share)
    return _DECODE_MARGIN * spec.image_size


def build_eval_transform(spec: TransformSpec) -> Callable[[Tensor], Tensor]:
    """Return evaluation's transform, (3, H, W) uint8 -> (3, S, S) uint8, without randomness."""
    builders = {"squash": _build_squash, "crop": _build_center_crop, "pad": _build_pad}
    return builders[spec.resize](spec)


def locate_square(
    spec: TransformSpec, width: int, height: int
) -> tuple[float, float, float, float]:
    """Return where the model's square of evaluation lies in a picture, up to a pixel's rounding.

        2000 x 1000, squash  ->  (0, 0, 1, 1): the whole picture
        2000 x 1000, crop    ->  (0.28, 0.06, 0.72, 0.94): its middle
        2000 x 1000, pad     ->  (0, -0.5, 1, 1.5): more than the picture

    Args:
        spec: says how a picture becomes a square.
        width, height: of the decoded, upright picture.

    Returns:
        Left, top, right and bottom, in shares of the picture's width and height.
    """
    if spec.resize == "squash":
        return 0.0, 0.0, 1.0, 1.0
    side = float(max(width, height))
    if spec.resize == "crop":
        side = min(width, height) * spec.image_size / round(spec.image_size / spec.crop_share)
    across, down = side / width, side / height
    return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2


def build_train_transform(spec: TransformSpec) -> Callable[[Tensor, int], Tensor]:
    """Return training's transform, (3, H, W) uint8 and a seed -> (3, S, S) uint8.

    The result depends on picture and seed alone. With a `crop_scale` of (1, 1) the picture becomes
    a square as in evaluation, and is not cropped at random.
    """
    steps: list[Callable[[Tensor], Tensor]] = []
    whole = build_eval_transform(spec) if spec.crop_scale == (1.0, 1.0) else None
    if whole is None:
        steps.append(build_random_crop(spec))
    if spec.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(spec.horizontal_flip))
    if spec.rand_augment:
        steps.append(v2.RandAugment(num_ops=spec.rand_augment))
    if spec.color_jitter:
        steps.append(v2.ColorJitter(*[spec.color_jitter] * 3))
    augment = v2.Compose(steps or [v2.Identity()])

    def apply(image: Tensor, seed: int) -> Tensor:
        with _private_generator(seed):
            out: Tensor = augment(image if whole is None else whole(image))
        return out.contiguous()

    return apply


def build_random_crop(spec: TransformSpec) -> Callable[[Tensor], Tensor]:
    """Return torchvision's RandomResizedCrop, (3, H, W) -> (3, S, S), on the global generator.

    One thing differs: the crop's place is drawn as a share of the room around it, and not as a
    number of pixels. So a picture decoded at half its size is cropped at the same place, up to
    rounding.
    """
    crops = v2.RandomResizedCrop(spec.image_size, scale=spec.crop_scale)
    resize = partial(
        F.resized_crop,
        size=[spec.image_size] * 2,
        interpolation=InterpolationMode(spec.interpolation),
        antialias=True,
    )

    def apply(image: Tensor) -> Tensor:
        box = crops.make_params([image])
        height, width = F.get_size(image)
        box["top"] = int(torch.rand(()).item() * (height - box["height"] + 1))
        box["left"] = int(torch.rand(()).item() * (width - box["width"] + 1))
        out: Tensor = resize(image, **box)
        return out

    return apply


@contextmanager
def _private_generator(seed: int) -> Iterator[None]:
    """Seed the global CPU generator, from which torchvision draws; restore its state afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _build_resize(spec: TransformSpec) -> Callable[[Tensor, list[int]], Tensor]:
    """Return a function that resizes a picture to [height, width], or its shorter side."""
    return partial(F.resize, interpolation=InterpolationMode(spec.interpolation), antialias=True)


def _build_squash(spec: TransformSpec) -> Callable[[Tensor], Tensor]:
    """Return a transform that resizes the whole picture to the square."""
    side, resize = [spec.image_size, spec.image_size], _build_resize(spec)
    return lambda image: resize(image, side).contiguous()


def _build_center_crop(spec: TransformSpec) -> Callable[[Tensor], Tensor]:
    """Return a transform that resizes the shorter side, then cuts out the center.

    A picture much longer than wide is first cut to its middle: to resize all of a 1 x 5000 strip
    would take gigabytes, for pixels that the crop drops.
    """
    resize = _build_resize(spec)
    shorter, side = [round(spec.image_size / spec.crop_share)], [spec.image_size] * 2

    def apply(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        short = min(height, width)
        if max(height, width) > 2 * short:
            middle = [min(length, 2 * short + length % 2) for length in (height, width)]
            image = F.center_crop(image, middle)
        out: Tensor = F.center_crop(resize(image, shorter), side)
        return out.contiguous()

    return apply


def _build_pad(spec: TransformSpec) -> Callable[[Tensor], Tensor]:
    """Return a transform that resizes the longer side, and fills the rest with the mean color.

    The mean color is 0 after normalization.
    """
    resize = _build_resize(spec)
    fill = torch.tensor([round(255 * level) for level in spec.mean], dtype=torch.uint8)[
        :, None, None
    ]

    def apply(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        scale = spec.image_size / max(height, width)
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        top, left = (spec.image_size - size[0]) // 2, (spec.image_size - size[1]) // 2
        out = fill.expand(3, spec.image_size, spec.image_size).clone()
        out[:, top : top + size[0], left : left + size[1]] = resize(image, size)
        return out

    return apply
