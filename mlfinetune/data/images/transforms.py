"""A decoded picture becomes the model's uint8 square; one TransformSpec says how.

    (H, W, 3) uint8 -> eval_transform                  squash | crop | pad     -> (3, S, S) uint8
                    -> train_transform(seed)           random crop, flip, ...  -> (3, S, S) uint8

Normalisation is the model's: batches stay uint8 until they are on the device. Pixels stay
interleaved, as decoders give them, until they are few: torch resizes such uint8 with AVX2 at
once, where planes would be interleaved, and a big picture copied, first.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class TransformSpec:
    """How a decoded picture becomes the model's input; stored in every checkpoint.

    Attributes:
        image_size: S, the side of the square that the model sees, in pixels.
        resize: evaluation: `squash` the whole picture to the square, `crop` its centre, or `pad`.
        max_pixels: a picture with more is refused before it is decoded.
        mean, std: of the training set of the pretrained weights, for RGB in [0, 1].
        crop_scale: training: bounds of the area share that a random resized crop keeps.
        horizontal_flip: training: probability of a mirror image.
        color_jitter: training: strength of brightness, contrast and saturation jitter, 0 to 1.
        rand_augment: training: number of RandAugment operations a picture.
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


CROP_SHARE = 224 / 256
"""`crop` keeps this share of the shorter side, torchvision's convention."""

_SPARE = 2  # a picture scaled down while it is decoded keeps twice the pixels a side it needs
_NARROWEST = 3 / 4  # width to height of RandomResizedCrop's crops, or the other way round


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) -> (3, H, W), a view."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def min_decoded_side(spec: TransformSpec, *, training: bool) -> int:
    """Pixels a side that a picture must keep, so that decoding it smaller does not show.

    Twice what the resize asks for, on both sides; in training of the smallest random crop.
    """
    if training and spec.crop_scale != (1.0, 1.0):
        smallest_crop = math.sqrt(spec.crop_scale[0] * _NARROWEST)  # share of the shorter side
        return math.ceil(_SPARE * spec.image_size / smallest_crop)
    if spec.resize == "crop":
        return _SPARE * round(spec.image_size / CROP_SHARE)
    return _SPARE * spec.image_size


def build_eval_transform(spec: TransformSpec) -> Callable[[Tensor], Tensor]:
    """(3, H, W) uint8 -> (3, S, S) uint8, the same every time."""
    return {"squash": _squash, "crop": _center_crop, "pad": _pad}[spec.resize](spec)


def build_train_transform(spec: TransformSpec) -> Callable[[Tensor, int], Tensor]:
    """(3, H, W) uint8 and a seed -> (3, S, S) uint8, a function of both.

    With a `crop_scale` of (1, 1) the picture becomes a square as in evaluation.
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
    """(3, H, W) -> (3, S, S): RandomResizedCrop, drawn from torch's global generator.

    The crop's place is drawn as a share of the room around it, where torchvision draws a whole
    number of pixels: a picture that was scaled as it was decoded is cropped at the same place,
    but for rounding.
    """
    crops = v2.RandomResizedCrop(spec.image_size, scale=spec.crop_scale)

    def apply(image: Tensor) -> Tensor:
        box = crops.make_params([image])
        height, width = F.get_size(image)
        box["top"] = int(torch.rand(()).item() * (height - box["height"] + 1))
        box["left"] = int(torch.rand(()).item() * (width - box["width"] + 1))
        out: Tensor = F.resized_crop(image, **box, size=[spec.image_size] * 2, antialias=True)
        return out

    return apply


@contextmanager
def _private_generator(seed: int) -> Iterator[None]:
    """torchvision draws from the global CPU generator: lend it a seed, then put it back."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _squash(spec: TransformSpec) -> Callable[[Tensor], Tensor]:
    side = [spec.image_size, spec.image_size]
    return lambda image: F.resize(image, side, antialias=True).contiguous()


def _center_crop(spec: TransformSpec) -> Callable[[Tensor], Tensor]:
    """The shorter side scaled, then the centre cut out.

    A picture much longer than wide is cut to its middle first: scaling all of a 1 x 5000 strip
    would need gigabytes, for pixels that the crop drops.
    """
    shorter, side = [round(spec.image_size / CROP_SHARE)], [spec.image_size] * 2

    def apply(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        short = min(height, width)
        if max(height, width) > 2 * short:
            kept = [min(n, 2 * short + n % 2) for n in (height, width)]
            image = F.center_crop(image, kept)
        out: Tensor = F.center_crop(F.resize(image, shorter, antialias=True), side)
        return out.contiguous()

    return apply


def _pad(spec: TransformSpec) -> Callable[[Tensor], Tensor]:
    """The longer side fills the square; the rest has the mean colour, which normalises to 0."""
    fill = torch.tensor([round(255 * m) for m in spec.mean], dtype=torch.uint8)[:, None, None]

    def apply(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        scale = spec.image_size / max(height, width)
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        top, left = (spec.image_size - size[0]) // 2, (spec.image_size - size[1]) // 2
        out = fill.expand(3, spec.image_size, spec.image_size).clone()
        out[:, top : top + size[0], left : left + size[1]] = F.resize(image, size, antialias=True)
        return out

    return apply
