"""Class activation maps: the parts that each place of a picture has in a label's logit.

    maps of the backbone's stages (B, C, h, w), weights of a label (F,)
        -> at each place the sum over channels of weight * map -> (B, k, h, w)

Between the pooled maps and a logit there is only a mean and a linear head, so the map is exact:

    logit = bias + mean over places of the label's map

Source: Zhou et al. 2016, Learning Deep Features for Discriminative Localization.
"""

import copy
from collections.abc import Callable, Sequence
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlfinetune.data.images.decode import decode_image
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.overlay import Explanation, compute_overlaps
from mlfinetune.data.images.transforms import (
    TransformSpec,
    build_eval_transform,
    compute_min_decoded_side,
    locate_square,
    to_tensor,
)
from mlfinetune.errors import ConfigError
from mlfinetune.models.backbones import PooledResNet
from mlfinetune.models.inference import FusedBackbone
from mlfinetune.models.sizes import MISFITS
from mlfinetune.models.tagger import ChunkedLinear, Tagger
from mlfinetune.runtime.machine import count_process_cores
from mlfinetune.runtime.threads import one_thread

ComputeMaps = Callable[[Tensor], list[Tensor]]
"""(B, 3, S, S) normalized -> maps (B, C, h, w), whose means, joined, are the features."""

_EXACT = 1e-5
"""Greatest difference of features from the means of maps, as a share of the greatest value."""


def find_maps(features: nn.Module, side: int) -> ComputeMaps:
    """Return what computes the maps of a backbone, whose means are its features.

    Of a backbone that is no ResNet of torchvision they are what its last pooling layer gets. One
    picture shows whether their means are the features: after a layer beyond the pooling they are
    not. It takes two forward passes, in float32 on the CPU: a GPU may compute both by other
    algorithms.

    Args:
        side: S, of the pictures.

    Raises:
        ConfigError: the backbone has no map.
    """
    if isinstance(features, PooledResNet | FusedBackbone):
        return features.compute_maps
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        unpooled = _remove_pooling(features.eval())
        parts = [copy.deepcopy(part).to("cpu", torch.float32) for part in (features, unpooled)]
        with torch.no_grad():
            means, flat = (part(noise) for part in parts)
    except MISFITS:  # no pooling layer, or a layer beyond it takes no maps
        pass
    else:
        if _are_means(flat, means):
            return lambda images: [_to_maps(unpooled(images), means.shape[1])]
    raise ConfigError(
        f"a backbone of type {type(features).__name__} has no heat map: its features do not come "
        f"from a layer that averages maps; torchvision's ResNets have one"
    )


def _remove_pooling(features: nn.Module) -> nn.Module:
    """Return a backbone that gives (B, C * h * w) where `features` gives means (B, C).

    It shares all tensors. A ValueError is raised where there is no pooling layer.
    """
    shared = {id(tensor): tensor for tensor in (*features.parameters(), *features.buffers())}
    unpooled = copy.deepcopy(features, shared)
    names = [
        name
        for name, layer in unpooled.named_modules()
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)) and name
    ]
    if not names:
        raise ValueError("no pooling layer")
    unpooled.set_submodule(names[-1], nn.Identity())
    return unpooled


def _are_means(flat: Tensor, features: Tensor) -> bool:
    """Tell whether the features of a picture are the means of square maps, of several cells."""
    cells = flat.numel() // features.numel()
    if flat.dim() != 2 or cells * features.numel() != flat.numel() or isqrt(cells) ** 2 != cells:
        return False
    if cells == 1:
        return False  # it would say nothing of places, nor of what comes after the pooling
    means = flat.reshape(*features.shape, cells).mean(2)
    return bool((means - features).abs().max() <= _EXACT * flat.abs().max())


def _to_maps(flat: Tensor, width: int) -> Tensor:
    """(B, C * h * w) -> (B, C, h, w); the pictures are squares, so h is w."""
    side = isqrt(flat.shape[1] // width)
    return flat.reshape(len(flat), width, side, side)


def explain(tagger: Tagger, images: Tensor, labels: Sequence[int], mirror: bool = False) -> Tensor:
    """Compute where pictures speak for labels.

    Args:
        tagger: it is put into evaluation mode.
        images: (B, 3, S, S) uint8, on any device.
        labels: columns of the k labels.
        mirror: the logits are means of a picture's and its mirror image's; so are the maps.

    Returns:
        (B, k, h, w) float32 on the tagger's device: the parts of the logits. The mean over h and w
        and the label's bias add up to its logit. h and w are those of the largest map.

    Raises:
        ConfigError: the backbone has no map.
    """
    tagger.eval()
    return _explain(tagger, find_maps(tagger.features, images.shape[-1]), images, labels, mirror)


def _explain(
    tagger: Tagger, compute_maps: ComputeMaps, images: Tensor, labels: Sequence[int], mirror: bool
) -> Tensor:
    if mirror:
        mirrored = _explain(tagger, compute_maps, images.flip(3), labels, False).flip(3)
        return (_explain(tagger, compute_maps, images, labels, False) + mirrored) / 2
    with torch.no_grad():
        maps = compute_maps(tagger.normalize(images.to(tagger.mean.device)))
        weights = torch.split(_take_rows(tagger.head, labels), [each.shape[1] for each in maps], 1)
        size = max(tuple(each.shape[2:]) for each in maps)
        parts = [
            _resample(torch.einsum("kc,bchw->bkhw", weight, each.float()), size)
            for weight, each in zip(weights, maps, strict=True)
        ]
        return torch.stack(parts).sum(0)


def _take_rows(head: nn.Module, labels: Sequence[int]) -> Tensor:
    """Return the (k, F) float32 weights of some labels."""
    assert isinstance(head, nn.Linear | ChunkedLinear)
    chunks = list(head.chunks) if isinstance(head, ChunkedLinear) else [head.weight]
    length = len(chunks[0])  # of all chunks but the last
    return torch.stack([chunks[label // length][label % length] for label in labels]).float()


def _resample(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resample (B, k, h, w) maps to another size by the cells' areas; their means stay."""
    rows, columns = (
        torch.from_numpy(compute_overlaps(cells, given)).to(maps.device)
        for cells, given in zip(size, maps.shape[2:], strict=True)
    )
    return rows @ maps @ columns.T


class Explainer:
    """Decodes pictures, and computes their maps: an `Explain`."""

    def __init__(self, tagger: Tagger, spec: TransformSpec, mirror: bool = False) -> None:
        """Prepare to explain pictures one by one.

        Args:
            tagger, mirror: as `explain` takes them.
            spec: how a picture becomes the model's square.

        Raises:
            ConfigError: the backbone has no map.
        """
        tagger.eval()
        self._compute_maps = find_maps(tagger.features, spec.image_size)
        self._tagger, self._spec, self._mirror = tagger, spec, mirror
        self._transform = build_eval_transform(spec)
        self._min_side = compute_min_decoded_side(spec, training=False)
        self._jpeg, _ = choose_jpeg_decoder()

    def __call__(self, path: str, labels: Sequence[int]) -> Explanation:
        """Return the maps of one picture for the labels.

        Raises:
            ImageError: the picture cannot be decoded.
        """
        with one_thread():
            pixels = decode_image(path, self._spec.max_pixels, self._min_side, self._jpeg)
            return self.explain_pixels(pixels, labels)

    def explain_pixels(self, pixels: NDArray[np.uint8], labels: Sequence[int]) -> Explanation:
        """Return the maps of a decoded picture, (H, W, 3) RGB, for the labels."""
        square = self._transform(to_tensor(pixels))
        maps = _explain(self._tagger, self._compute_maps, square[None], labels, self._mirror)
        height, width = pixels.shape[:2]
        return Explanation(pixels, maps[0].cpu().numpy(), locate_square(self._spec, width, height))


def count_explaining_threads(device: torch.device) -> int:
    """Return how many threads compute maps at once: some of a CPU; a GPU has one picture at a time.

    Each has one thread of torch, and waits for no other. Each may hold a large picture.
    """
    return min(count_process_cores(), 4) if device.type == "cpu" else 1


def build_explainer(
    tagger: Tagger, spec: TransformSpec, mirror: bool = False
) -> tuple[Explainer | None, str]:
    """Return an Explainer; or None, and the reason why the backbone has no map."""
    try:
        return Explainer(tagger, spec, mirror), ""
    except ConfigError as error:
        return None, str(error)
