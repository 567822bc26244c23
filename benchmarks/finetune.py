"""Levers of fine-tuning from a solved head: mAP epoch by epoch, against the solved head itself.

python benchmarks/finetune.py --train train.csv --val val.csv --images images --weights FILE

One seed is one random subset of train. Its head is solved for once, as `solve_head_first` does it.
Each way then trains a copy of that tagger; ways differ in the levers of `Way`. Augmentation,
optimizers, losses and the solver are those of `mlfinetune train`; levers that it does not have are
here. Ways that benchmarks/results/finetune.json has already are not run again. Prints a line a
way; differences have 95 % intervals over the validation pictures.
"""

import argparse
import copy
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from levels_tuned import read_labels, write_subset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.v2 import RandomErasing

from mlfinetune.config import load_config
from mlfinetune.config.sections import LOSS_SETTINGS
from mlfinetune.data.batches.loader import Loader
from mlfinetune.data.load import load_splits
from mlfinetune.loss import Loss
from mlfinetune.metrics.comparison import compare_tables
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.device import prepare_device
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.training.build import build_loader, build_training_loss
from mlfinetune.training.loop import (
    validate,
)
from mlfinetune.training.network import build_transform_spec
from mlfinetune.training.optim import build_ema_model, build_optimizer, compute_lr_factor
from mlfinetune.training.select import solve_first
from mlfinetune.training.setup import TrainingSetup, set_up, with_features

CONFIG = Path(__file__).parents[1] / "configs" / "finetune.yaml"
RESULT = Path(__file__).parent / "results" / "finetune.json"


@dataclass(frozen=True)
class Way:
    """One way to fine-tune; defaults are the recipe of before, but for a shorter warm-up.

    Attributes:
        anchor: strength a of the penalty a/2 * |w - w0|^2 toward the start (L2-SP), of the
            backbone.
        adapt: before all, BatchNorm's statistics are estimated on the training pictures.
        freeze_norms: stages whose BatchNorm keeps its statistics; `""` is that of all.
        norm_momentum: share of a batch in BatchNorm's running statistics.
        flip: share of mirror images.
        solve_first: training starts from the solved head; else from a Kaiming-initialized one.
        solve_last: solve for the head again on features of the tuned backbone.
        solve_views: solve for it once more on so many views of a training picture: itself, its
            mirror image, and crops of 0.35 to 1 with color jitter, which training did not fit.
        ema: decay of `train.ema`, whose first steps count less (see `build_ema_model`).
        horizon: share of all steps that a moving average of the weights reaches back, from the
            start on; None: there is none.
        train_side: size in pixels of training's pictures; None: that of validation's.
        pos_weight: as `loss.pos_weight`.
        mix: share of the tuned weights in the mean with those of before training; 1: tuned alone.
        mixup: a of Beta(a, a), the share of each picture that a step mixes with another one; the
            loss is that of both, by their shares. 0: none.
        solve_each: solve for the head after each epoch, on features of the backbone of then; that
            head is what the epoch is validated with.
        go_on: training goes on from that head, as with `train.solve_head_each`.
        sharpness: radius of the step uphill where gradients are taken (SAM); 0: none.
        dropout: share of the features that a step sets to 0.
        loss: as `loss.name`.
        teach: share of a teacher in each target: the probabilities that heads of the pretrained
            backbone give to pictures that they were not fitted to.
        teach_negatives: the teacher has a share in negative targets alone, as tags may be missing.
        soup: number of runs, of other seeds, whose weights are averaged.
        joined: solve for one more head, on features of the pretrained and the tuned backbone.
    """

    optimizer: str = "adamw"
    lr: float = 1e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    layer_decay: float | None = None
    warmup: float = 0.05
    batch_size: int = 32
    epochs: int = 5
    ema: float | None = None
    horizon: float | None = None
    smoothing: float = 0.0
    rand_augment: int = 0
    erasing: float = 0.0
    crop: float = 0.35
    jitter: float = 0.2
    anchor: float = 0.0
    adapt: bool = False
    freeze_norms: tuple[str, ...] = ()
    norm_momentum: float = 0.1
    flip: float = 0.5
    solve_first: bool = True
    solve_last: bool = False
    solve_views: int = 0
    train_side: int | None = None
    pos_weight: str | None = None
    mix: float = 1.0
    mixup: float = 0.0
    solve_each: bool = False
    go_on: bool = False
    sharpness: float = 0.0
    dropout: float = 0.0
    loss: str = "sce"
    teach: float = 0.0
    teach_negatives: bool = False
    soup: int = 1
    joined: bool = False


MILD = Way(crop=0.8, jitter=0.0, solve_last=True)
RECIPE = replace(MILD, lr=2e-4, head_lr=2e-3, layer_decay=0.7, horizon=0.5)
"""The recipe of now, configs/finetune.yaml, with the head solved for after the last epoch alone."""
WAYS = {
    "recipe": RECIPE,
    "before": Way(),
    "before, head_lr 1e-4": Way(head_lr=1e-4),
    "before, rates of 1e-5": Way(lr=1e-5, head_lr=1e-5, solve_last=True),
    "before, BatchNorm frozen": Way(freeze_norms=("",)),
    "before, mild augmentation": replace(MILD, mix=0.5),
    "before, mild augmentation, EMA 0.9": replace(MILD, ema=0.9),
    "before, mild augmentation, layer_decay 0.7": replace(MILD, layer_decay=0.7),
    "before, mild augmentation, rates doubled": replace(MILD, lr=2e-4, head_lr=2e-3, mix=0.5),
    "rates halved, no layer_decay": replace(MILD, horizon=0.5),
    "rates doubled": replace(RECIPE, lr=4e-4, head_lr=4e-3),
    "crops of 0.35, jitter 0.2": replace(RECIPE, crop=0.35, jitter=0.2),
    "whole pictures": replace(RECIPE, crop=1.0),
    "BatchNorm estimated before": replace(RECIPE, adapt=True),
    "BatchNorm frozen": replace(RECIPE, freeze_norms=("",), solve_last=False),
    "BatchNorm frozen before layer3": replace(RECIPE, freeze_norms=("bn1", "layer1", "layer2")),
    "BatchNorm frozen, rates of 1e-4": replace(
        RECIPE, freeze_norms=("",), lr=1e-4, head_lr=1e-4, layer_decay=None
    ),
    "BatchNorm of momentum 0.02": replace(RECIPE, norm_momentum=0.02),
    "mixup 0.2": replace(RECIPE, mixup=0.2),
    "label smoothing 0.1": replace(RECIPE, smoothing=0.1),
    "RandAugment 2, erasing 0.25": replace(RECIPE, rand_augment=2, erasing=0.25),
    "L2-SP 0.01": replace(RECIPE, anchor=0.01),
    "SGD": replace(RECIPE, optimizer="sgd", lr=0.3, head_lr=0.03),
    "no warm-up": replace(RECIPE, warmup=0.0),
    "warm-up of 20 %": replace(RECIPE, warmup=0.2),
    "batches of 16": replace(RECIPE, batch_size=16),
    "head_lr 2e-4": replace(RECIPE, head_lr=2e-4),
    "head_lr 0": replace(RECIPE, head_lr=0.0),
    "mean of all steps": replace(RECIPE, horizon=1.0),
    "a Kaiming-initialized head": replace(RECIPE, solve_first=False),
    "no ema": replace(RECIPE, horizon=None),
    "no layer_decay": replace(RECIPE, layer_decay=None),
    "rates halved": replace(RECIPE, lr=1e-4, head_lr=1e-3),
    "no weight_decay": replace(RECIPE, weight_decay=0.0),
    "no mirror images": replace(RECIPE, flip=0.0),
    "solved on six views": replace(RECIPE, solve_views=6),
    "trained at 160 px": replace(RECIPE, train_side=160),
    "trained at 128 px": replace(RECIPE, train_side=128),
    "pos_weight auto": replace(RECIPE, pos_weight="auto"),
    "solved after each epoch, trained head kept": replace(RECIPE, solve_each=True),
    "solved after each epoch": replace(RECIPE, solve_each=True, go_on=True),
    "SAM 0.05": replace(RECIPE, solve_each=True, sharpness=0.05),
    "SAM 0.2": replace(RECIPE, solve_each=True, sharpness=0.2),
    "dropout 0.5": replace(RECIPE, solve_each=True, dropout=0.5),
    "asl": replace(RECIPE, solve_each=True, loss="asl"),
    "teacher 0.5": replace(RECIPE, solve_each=True, teach=0.5),
    "teacher 0.5 of negatives": replace(RECIPE, solve_each=True, teach=0.5, teach_negatives=True),
    "joined with the pretrained backbone": replace(RECIPE, joined=True),
    "mean of three runs": replace(RECIPE, soup=3),
    "10 epochs": replace(RECIPE, epochs=10),
    "20 epochs": replace(RECIPE, epochs=20),
}
"""Name -> way; those that start with `before` change the recipe of before, others that of now."""


class Trial:
    """The subset of one seed: its data, its solved head, and what ways gave so far."""

    def __init__(self, asked: argparse.Namespace, seed: int, folder: Path) -> None:
        """Read the subset, build the tagger, solve for its head."""
        labels = write_subset(asked.train, asked.rows, seed, folder / "train.csv")
        unseen = sorted(read_labels(asked.val) - labels)
        overrides = [f"data.train={folder / 'train.csv'}", f"data.val={asked.val.absolute()}"]
        overrides += [f"data.images={asked.images.absolute()}", f"train.seed={seed}"]
        overrides += [f"train.cache_views={asked.views}"]
        overrides += [f"data.ignore_labels={json.dumps(unseen)}", "model.levels=2"]
        overrides += [f"model.image_size={asked.side}", f"model.weights={asked.weights.absolute()}"]
        self.said = StringIO()
        self.log = RunLog(self.said)
        self.config = load_config(CONFIG, overrides)
        splits = load_splits(self.config, None)
        world = World(prepare_device("cpu"), DistInfo())
        self.setup = set_up(self.config, splits, world, self.log)
        best = solve_first(self.setup, folder / "features", self.log)
        assert best.scores is not None
        self.solved: ScoreTable = best.scores
        self.start = copy.deepcopy(self.setup.tagger.state_dict())
        self.taught: Tensor | None = None
        self.folder, self.seed, self.every_epoch = folder, seed, asked.every_epoch

    def run(self, way: Way) -> dict[str, Any]:
        """Train a copy of the tagger; return its mAP after each epoch, and differences."""
        torch.manual_seed(self.seed)
        setup = self._prepare(way)
        started, scores = time.monotonic(), self.solved
        history = []
        found: dict[str, Any] = {}
        start = self.start
        if way.adapt:
            estimate_batch_norm(setup)
            found["adapted"] = self._solve(setup)
            start = copy.deepcopy(setup.tagger.state_dict())
        for number, (net, trained) in enumerate(train(setup, way, start), 1):
            if number not in (1, way.epochs) and not (self.every_epoch or way.solve_each):
                continue
            if way.solve_each:
                self._solve_each(replace(setup, tagger=net, net=net), way, found, trained)
            averages, scored = validate(replace(setup, tagger=net, net=net), self.log)
            assert scored is not None
            scores = scored
            history.append(averages["mAP"])
        if way.soup > 1:
            net = self._average_runs(setup, way, start, net)
            scores = self._validate_average(replace(setup, tagger=net, net=net), found)
        seconds = time.monotonic() - started
        found |= {"epochs": history, "seconds": round(seconds), **self._compare(scores)}
        if way.joined:
            found["joined"] = self._solve_joined(setup, net, start)
        if way.mix != 1.0 or way.solve_last:
            found |= self._finish(replace(setup, tagger=net, net=net), way, start)
        return found

    def _average_runs(
        self, setup: TrainingSetup, way: Way, start: dict[str, Tensor], first: Tagger
    ) -> Tagger:
        """Train as many more copies as the way asks for; return the mean of all, as a copy."""
        mean = copy.deepcopy(first)
        for number in range(1, way.soup):
            torch.manual_seed(self.seed + 1000 * number)
            setup.tagger.load_state_dict(start)
            config = setup.config.update_section("train", seed=self.seed + 1000 * number)
            loader = build_loader(
                config, setup.splits.train, setup.spec, setup.device, 0, train=True
            )
            epochs = train(replace(setup, config=config, train=loader), way, start)
            net = list(epochs)[-1][0]
            for into, value in zip(
                mean.state_dict().values(), net.state_dict().values(), strict=True
            ):
                if into.is_floating_point():
                    into.lerp_(value, 1 / (number + 1))
        return mean

    def _validate_average(self, setup: TrainingSetup, found: dict[str, Any]) -> ScoreTable:
        """Validate the mean of several runs."""
        _, scores = validate(setup, self.log)
        assert scores is not None
        found["mean of runs"] = self._compare(scores)
        return scores

    def _solve_each(
        self, setup: TrainingSetup, way: Way, found: dict[str, Any], trained: Tagger
    ) -> None:
        """Solve for the head after an epoch; training goes on from it, or from its own."""
        own = copy.deepcopy(setup.tagger.head.state_dict())
        solved = self._solve(setup)
        found.setdefault("solved each", []).append(solved["mAP"])
        if way.go_on:
            trained.head.load_state_dict(setup.tagger.head.state_dict())
        else:
            setup.tagger.head.load_state_dict(own)

    def _finish(self, setup: TrainingSetup, way: Way, start: dict[str, Tensor]) -> dict[str, Any]:
        """Average weights with those of before, and solve for the head again, on both."""
        found: dict[str, Any] = {}
        tuned = copy.deepcopy(setup.tagger.state_dict())
        if way.solve_last:
            found["solved again"] = self._solve(setup)
        if way.solve_views:
            config = setup.config.update_section("train", cache_views=way.solve_views)
            config = config.update_section("augment", crop_scale=(0.35, 1.0), color_jitter=0.2)
            wide = replace(setup, config=config, spec=build_transform_spec(config))
            found["solved on wide crops"] = self._solve(wide)
        if way.mix != 1.0:
            mixed = {
                key: torch.lerp(old, tuned[key], way.mix) if old.is_floating_point() else old
                for key, old in start.items()
            }
            setup.tagger.load_state_dict(mixed)
            _, scores = validate(setup, self.log)
            assert scores is not None
            found["mixed"] = self._compare(scores)
            if way.solve_last:
                found["mixed, solved again"] = self._solve(setup)
        return found

    def _solve(self, setup: TrainingSetup) -> dict[str, Any]:
        """Solve for the head on features of the tuned backbone."""
        self.said.truncate(0)
        best = solve_first(setup, Path(tempfile.mkdtemp(dir=self.folder)), self.log)
        assert best.scores is not None
        (solution,) = re.findall(r"starts from the head of (.*), mAP", self.said.getvalue())
        return {**self._compare(best.scores), "solution": solution}

    def _solve_joined(
        self, setup: TrainingSetup, net: Tagger, start: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Solve for a head on the features of two backbones, the pretrained and the tuned one."""
        pretrained = copy.deepcopy(net)
        pretrained.load_state_dict(start)
        joined = net.with_features(Joined(pretrained.features, net.features))
        joined = joined.with_head(nn.Linear(2 * net.head.in_features, net.head.bias.numel()))
        return self._solve(replace(setup, tagger=joined, net=joined))

    def _compare(self, scores: ScoreTable) -> dict[str, Any]:
        """Return the mAP of scores, and its difference to the solved head with an interval."""
        even = [0.5] * len(scores.labels)
        difference = compare_tables(self.solved, scores, even, even).averages["mAP"]
        return {
            "mAP": measure(scores).averages["mAP"],
            "gain": difference.value,
            "interval": difference.interval,
        }

    def _prepare(self, way: Way) -> TrainingSetup:
        """Return the setup of a way, its tagger at the start."""
        overrides = {
            "train": {
                "batch_size": way.batch_size,
                "epochs": way.epochs,
            },
            "augment": {
                "rand_augment": way.rand_augment,
                "crop_scale": (way.crop, 1.0),
                "color_jitter": way.jitter,
                "horizontal_flip": way.flip,
            },
            "loss": {
                **LOSS_SETTINGS.get(way.loss, {}),
                "name": way.loss,
                "label_smoothing": way.smoothing,
                "pos_weight": way.pos_weight,
            },
        }
        config = self.setup.config
        for section, values in overrides.items():
            config = config.update_section(section, **values)
        tagger = self.setup.tagger
        tagger.load_state_dict(self.start)
        if not way.solve_first:
            nn.init.kaiming_normal_(tagger.head.weight)
            nn.init.zeros_(tagger.head.bias)
        splits, device = self.setup.splits, self.setup.device
        spec = build_transform_spec(config)
        small = replace(spec, image_size=way.train_side or spec.image_size)
        train = build_loader(config, splits.train, small, device, 0, train=True)
        loss, _ = build_training_loss(config, splits.train, device)
        if way.teach:
            loss = Taught(loss, self._teach(), way.teach, way.teach_negatives)
        return replace(self.setup, config=config, spec=spec, train=train, loss=loss)

    def _teach(self) -> Tensor:
        """Return the (N, L) probabilities of the training pictures, out of five folds.

        The penalty is that of the smallest log loss. Probabilities are of features of the
        pretrained backbone, standardized.
        """
        if self.taught is None:
            features = with_features(self.setup, Path(tempfile.mkdtemp(dir=self.folder)), self.log)
            assert features is not None
            batches = list(features.train.sweep())
            order = torch.cat([batch.indices for batch in batches]).argsort()
            x = torch.cat([batch.images for batch in batches])[order].numpy()
            y = torch.cat([batch.targets for batch in batches])[order].numpy()
            tried = [predict_out_of_fold(x, y == 1, c, self.seed) for c in (3e-4, 1e-3, 3e-3, 1e-2)]
            losses = [log_loss((y == 1).ravel(), p.ravel()) for p in tried]
            print("teacher", [f"{loss:.4f}" for loss in losses], flush=True)
            self.taught = torch.from_numpy(tried[losses.index(min(losses))]).float()
        return self.taught


class Taught(nn.Module):
    """Sigmoid cross entropy with targets that a teacher has a share in."""

    def __init__(self, loss: Loss, probabilities: Tensor, share: float, negatives: bool) -> None:
        """Keep the teacher's (N, L) probabilities; `negatives`: positive targets stay."""
        super().__init__()
        self.loss, self.share, self.negatives = loss, share, negatives
        self.probabilities = probabilities

    def forward(
        self, logits: Tensor, targets: Tensor, indices: Tensor | None = None, **options: Any
    ) -> Tensor:
        """(B, L) logits and targets, (B,) rows of the teacher -> the mean loss.

        Without rows, as in validation and in the solver, it is that of the targets alone.
        """
        if indices is None:
            return self.loss(logits, targets, **options)
        hard = (targets == 1).float()
        soft = torch.lerp(hard, self.probabilities[indices], self.share)
        soft = torch.where(hard == 1, hard, soft) if self.negatives else soft
        return nn.functional.binary_cross_entropy_with_logits(logits, soft)


class Joined(nn.Module):
    """Features of two backbones, side by side."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        """Keep both backbones."""
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F1 + F2)."""
        return torch.cat([self.first(x), self.second(x)], 1)


def predict_out_of_fold(x: Any, y: Any, c: float, seed: int) -> Any:
    """Return (N, L) probabilities of logistic regressions that were fitted to the other folds."""
    p = np.full(y.shape, 0.0)
    for fit, held in KFold(5, shuffle=True, random_state=seed).split(x):
        scaler = StandardScaler().fit(x[fit])
        for label in range(y.shape[1]):
            if len(set(y[fit, label])) == 1:
                p[held, label] = y[fit, label].mean()
                continue
            model = LogisticRegression(C=c, max_iter=200).fit(
                scaler.transform(x[fit]), y[fit, label]
            )
            p[held, label] = model.predict_proba(scaler.transform(x[held]))[:, 1]
    return p


def train(
    setup: TrainingSetup, way: Way, start: dict[str, Tensor]
) -> Iterator[tuple[Tagger, Tagger]]:
    """Train the tagger of a setup; after each epoch yield what is to be validated, and it."""
    tagger, loader = setup.tagger, setup.train
    assert isinstance(loader, Loader)
    groups = tagger.parameter_groups(way.lr, way.head_lr, way.weight_decay, way.layer_decay)
    optimizer = build_optimizer(groups, way.optimizer, 0.9)
    average = None if way.ema is None else build_ema_model(tagger, way.ema)
    if way.horizon is not None:
        decay = 1 - 1 / (way.horizon * loader.steps * way.epochs)
        average = build_ema_model(tagger, decay, from_start=way.solve_first)
    erase = RandomErasing(p=way.erasing) if way.erasing else lambda image: image
    steps = loader.steps
    total = steps * way.epochs
    warmup = round(total * way.warmup)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    step = 0
    for epoch in range(way.epochs):
        set_training(tagger, way)
        for batch in loader.epoch(epoch):
            batch.require_all(setup.splits.train.path)
            factor = compute_lr_factor(step, total, warmup)
            for group in optimizer.param_groups:
                group["lr"] = factor * group["initial_lr"]
            optimizer.zero_grad(set_to_none=True)
            images = torch.stack([erase(image) for image in batch.images])
            images, share, order = mix(images, way)
            compute_loss = setup.loss
            if isinstance(compute_loss, Taught):
                compute_loss = partial(compute_loss, indices=batch.indices)
            loss = partial(mix_losses, compute_loss, batch.targets, share, order)
            backward = partial(backpropagate, setup, way, images, loss)
            backward()
            if way.sharpness:
                climb(tagger, parameters, way.sharpness, backward)
            pull(tagger, start, way)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if average is not None:
                average.update_parameters(tagger)
            step += 1
        yield (tagger if average is None else average.module), tagger


def backpropagate(
    setup: TrainingSetup, way: Way, images: Tensor, loss: Callable[[Tensor], Tensor]
) -> None:
    """Compute the gradients of a step."""
    tagger = setup.tagger
    with torch.autocast("cpu", torch.bfloat16, enabled=setup.dtype == torch.bfloat16):
        logits = tagger.head(nn.functional.dropout(tagger.embed(images), way.dropout))
    loss(logits).backward()


def mix_losses(
    loss: Callable[..., Tensor], targets: Tensor, share: float, order: Tensor | None, logits: Tensor
) -> Tensor:
    """Return the loss of pictures that are mixed with others, by their shares."""
    own = loss(logits, targets)
    return own if order is None else share * own + (1 - share) * loss(logits, targets[order])


def mix(images: Tensor, way: Way) -> tuple[Tensor, float, Tensor | None]:
    """Mix pictures with others; return them, their own share, and the order of the others."""
    if not way.mixup:
        return images, 1.0, None
    share = float(torch.distributions.Beta(way.mixup, way.mixup).sample())
    order = torch.randperm(len(images))
    mixed = share * images + (1 - share) * images[order]
    return mixed.round().to(torch.uint8), share, order


@torch.no_grad()
def climb(
    tagger: Tagger, parameters: list[nn.Parameter], radius: float, backward: Callable[[], None]
) -> None:
    """Replace gradients by those a step uphill (SAM); BatchNorm's statistics stay."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    kept = [p.clone() for p in parameters]
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.add_(parameter.grad * (radius / (norm + 1e-12)))
        parameter.grad = None
    norms = [m for m in tagger.features.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.momentum = 0.0
    with torch.enable_grad():
        backward()
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    for parameter, value in zip(parameters, kept, strict=True):
        parameter.copy_(value)


@torch.no_grad()
def estimate_batch_norm(setup: TrainingSetup) -> None:
    """Replace BatchNorm's running statistics by those of the training pictures, augmented."""
    assert isinstance(setup.train, Loader)
    norms = [m for m in setup.tagger.features.modules() if isinstance(m, _BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in setup.train.epoch(0):
        with torch.autocast("cpu", torch.bfloat16, enabled=setup.dtype == torch.bfloat16):
            setup.tagger.embed(batch.images)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def set_training(tagger: Tagger, way: Way) -> None:
    """Set training mode; frozen BatchNorm stays in evaluation mode."""
    tagger.train()
    for name, module in tagger.features.named_modules():
        if isinstance(module, _BatchNorm):
            module.momentum = way.norm_momentum
            if name.startswith(way.freeze_norms):
                module.eval()


@torch.no_grad()
def pull(tagger: Tagger, start: dict[str, Tensor], way: Way) -> None:
    """Add the gradient of the penalties toward the start."""
    for name, parameter in tagger.named_parameters():
        if way.anchor and parameter.grad is not None and not name.startswith("head."):
            parameter.grad.add_(parameter - start[name], alpha=way.anchor)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--side", type=int, default=160, help="model.image_size")
    parser.add_argument("--views", type=int, default=1, help="train.cache_views")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--every-epoch", action="store_true", help="validate after each epoch")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory() as name:
            run_seed(asked, seed, Path(name))


def run_seed(asked: argparse.Namespace, seed: int, folder: Path) -> None:
    """Run all ways that are not done yet on the subset of a seed."""
    trial: Trial | None = None
    key = f"{asked.rows} pictures, {asked.side} px, seed {seed}"
    key += ", 1 view" if asked.views == 1 else ""
    for name in asked.ways:
        result = json.loads(asked.output.read_text()) if asked.output.exists() else {}
        if name in result.get(key, {}):
            continue
        way = WAYS[name]
        if trial is None:
            trial = Trial(asked, seed, folder)
        found = trial.run(way)
        solved = measure(trial.solved).averages["mAP"]
        result.setdefault(key, {})["solved head"] = {"mAP": solved}
        result[key][name] = found
        asked.output.write_text(json.dumps(result, indent=2) + "\n")
        shown = " ".join(f"{value:.3f}" for value in found["epochs"])
        gain = f"{found['gain']:+.3f} ({found['interval'][0]:+.3f}, {found['interval'][1]:+.3f})"
        print(f"{key}  {name}  {solved:.3f} -> {shown}  {gain}", flush=True)
        if "solved each" in found:
            print("    each", *(f"{value:.3f}" for value in found["solved each"]), flush=True)
        for part in (
            "adapted",
            "solved again",
            "solved on wide crops",
            "mixed",
            "mixed, solved again",
            "joined",
            "mean of runs",
        ):
            if part in found:
                print(f"    {part} {found[part]['mAP']:.3f} {found[part]['gain']:+.3f}", flush=True)


if __name__ == "__main__":
    main()
