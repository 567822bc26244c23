"""BatchNorm's statistics of the pictures that a run learns from, before it begins.

While a network learns, BatchNorm normalizes by the statistics of each batch; in evaluation, by
running ones. Those of pretrained weights are ImageNet's. A head that is solved for with them does
not fit the features that the first batches give: on clip art the mAP then falls by four points in
the first epoch, however small the learning rate is (`benchmarks/finetune.py`).
"""

from itertools import islice

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.loader import Loader
from mlfinetune.models.sync_batch_norm import is_synced
from mlfinetune.runtime.log import RunLog
from mlfinetune.text import pluralize
from mlfinetune.training.setup import TrainingSetup

MOST_BATCHES = 64
"""Number of batches that the statistics are estimated on, at most: more hardly change them."""


@torch.no_grad()
def estimate_batch_norm(setup: TrainingSetup, log: RunLog) -> bool:
    """Replace BatchNorm's running statistics by those of training pictures, as training sees them.

    The mean over the batches of each rank is taken, then that over the ranks. Nothing else is
    changed.

    Returns:
        False of a network without BatchNorm, which stays as it is.

    Raises:
        DataError: a picture that cannot be decoded, by name.
    """
    tagger, loader = setup.tagger, setup.train
    norms = [m for m in tagger.features.modules() if isinstance(m, _BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return False
    assert isinstance(loader, Loader)
    momenta = [norm.momentum for norm in norms]
    together = any(map(is_synced, norms))
    tagger.train()
    with log.bar("statistics of BatchNorm", None) as bar:
        batches = bar.track(islice(loader.epoch(0), MOST_BATCHES), count_images)
        for number, batch in enumerate(batches, 1):
            batch.require_all(setup.splits.train.path)
            if not len(batch.images) and not together:
                continue  # the last batch may have no picture for this rank
            for norm in norms:
                norm.momentum = 1 / number  # the mean over all batches so far
            images = batch.images.to(setup.device, non_blocking=True)
            with torch.autocast(setup.device.type, setup.dtype, setup.dtype != torch.float32):
                tagger.embed(images)
    loader.close()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            setup.world.all_reduce_sum_(statistic)
            statistic /= setup.world.info.size
    log.say(f"BatchNorm's statistics are those of {pluralize(bar.done, 'training picture')} now")
    return True


def count_images(batch: Batch) -> int:
    """Return the number of images of a batch, on all ranks together."""
    return len(batch.step_indices)
