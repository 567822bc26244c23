"""fastai's vision_learner: its head, its one-cycle schedule, its frozen body."""

import pandas as pd
import torch
from fastai.vision.all import (
    AccumMetric,
    BnFreeze,
    ColReader,
    ColSplitter,
    DataBlock,
    Flip,
    ImageBlock,
    MultiCategoryBlock,
    Normalize,
    RandomResizedCrop,
    Resize,
    ResizeMethod,
    SaveModelCallback,
    imagenet_stats,
    model_meta,
    set_seed,
    vision_learner,
)
from job import load
from safetensors.torch import load_file
from torchvision.models import resnet50


def main():
    """Train, validate after every epoch."""
    job = load()
    set_seed(0)

    def architecture(pretrained):
        model = resnet50()
        model.load_state_dict(load_file(job.weights), strict=False)
        return model

    def mAP(scores, targets):
        return job.record(scores.float().numpy())

    train, val = pd.read_csv(job.train), pd.read_csv(job.val)
    table = pd.concat([train.assign(is_valid=False), val.assign(is_valid=True)])
    squash = Resize(224, ResizeMethod.Squish)
    if not job.frozen:
        squash = Resize(224, ResizeMethod.Squish, split_idx=1)
        squash = [RandomResizedCrop(224, min_scale=0.35, split_idx=0), squash]
    block = DataBlock(
        blocks=(ImageBlock, MultiCategoryBlock(vocab=job.labels)),
        splitter=ColSplitter(),
        get_x=ColReader("image", pref=f"{job.images}/"),
        get_y=ColReader("labels", label_delim="|"),
        item_tfms=squash,
        batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats)],
    )
    loaders = block.dataloaders(
        table.reset_index(drop=True),
        bs=job.batch_size,
        num_workers=job.workers,
        persistent_workers=True,
        drop_last=False,
    )
    learner = vision_learner(
        loaders,
        architecture,
        cut=-2,
        splitter=model_meta[resnet50]["split"],
        metrics=AccumMetric(mAP, flatten=False),
        cbs=[SaveModelCallback(monitor="mAP"), *([BnFreeze()] if job.frozen else [])],
        train_bn=not job.frozen,
        path=job.folder,
    )
    learner.to_channelslast(use_amp=job.bf16 and torch.cuda.is_available(), amp_mode="bf16")
    if job.frozen:
        learner.fit_one_cycle(job.epochs, 1e-2)
    else:
        learner.unfreeze()
        learner.fit_one_cycle(job.epochs, slice(1e-4, 1e-2))


if __name__ == "__main__":
    main()
