"""Class activation maps: the parts that each place of a picture has in a label's logit.

    maps of the backbone's stages (B, C, h, w), weights of a label (F,)
        -> at each place the sum over channels of weight * map -> (B, k, h, w)

Between the pooled maps and a logit there is only a mean and a linear head, so the map is exact:

    logit = bias + mean over places of the label's map

Source: Zhou et al. 2016, Learning Deep Features for Discriminative Localization.
"""

from collections.abc import Sequence

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
from mlfinetune.models.tagger import ChunkedLinear, Tagger
from mlfinetune.runtime.machine import count_process_cores
from mlfinetune.runtime.threads import one_thread


def find_no_map_reason(features: nn.Module) -> str | None:
    """Say why a backbone has no map; None: it has one."""
    if isinstance(features, PooledResNet | FusedBackbone):
        return None
    return (
        f"a backbone of type {type(features).__name__} has no heat map: its features are not the "
        f"means of maps; torchvision's ResNets have one"
    )


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
    if reason := find_no_map_reason(tagger.features):
        raise ConfigError(reason)
    assert isinstance(tagger.features, PooledResNet | FusedBackbone)
    if mirror:
        mirrored = explain(tagger, images.flip(3), labels).flip(3)
        return (explain(tagger, images, labels) + mirrored) / 2
    tagger.eval()
    with torch.no_grad():
        x = tagger.normalize(images.to(tagger.mean.device))
        maps = tagger.features.compute_maps(x)
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
        if reason := find_no_map_reason(tagger.features):
            raise ConfigError(reason)
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
        maps = explain(self._tagger, square[None], labels, self._mirror)[0].cpu().numpy()
        height, width = pixels.shape[:2]
        return Explanation(pixels, maps, locate_square(self._spec, width, height))


def count_explaining_threads(device: torch.device) -> int:
    """Return how many threads compute maps at once: some of a CPU; a GPU has one picture at a time.

    Each has one thread of torch, and waits for no other. Each may hold a large picture.
    """
    return min(count_process_cores(), 4) if device.type == "cpu" else 1


def build_explainer(
    tagger: Tagger, spec: TransformSpec, mirror: bool = False
) -> tuple[Explainer | None, str]:
    """Return an Explainer; or None, and the reason why the backbone has no map."""
    reason = find_no_map_reason(tagger.features)
    return (None, reason) if reason else (Explainer(tagger, spec, mirror), "")
