"""The sections of the config: every key with its type, its default and its meaning.

Types are strict, unknown keys are errors, and a Config is frozen. The descriptions are the text of
schema.json, which editors show.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mlfinetune.config.data_section import DataConfig
from mlfinetune.config.types import FilePath, Fraction, Section

MAX_IMAGE_SIZE = 4096
"""Limit of `model.image_size`, for checkpoints too: one input takes 200 MB as float32."""


class ModelConfig(Section):
    """The network and its input."""

    backbone: str = Field(
        "resnet50",
        min_length=1,
        description="a classifier of torchvision; `mlfinetune models` lists them; where it is not "
        "set and the weights are of a run, that of the run",
    )
    weights: str | None = Field(
        "auto",
        min_length=1,
        description="auto: the best published ones of the backbone; a name such as IMAGENET1K_V2, "
        "a .pth or .safetensors file, a run directory, or null; of a file the backbone is taken, "
        "of a run its settings and the head's rows of labels that stay too",
    )
    levels: Annotated[int, Field(ge=1, le=4)] | Literal["auto"] = Field(
        "auto",
        description="number of the backbone's last stages whose averages are the features: 1, "
        "layer4 alone; 2, layer3 too; auto: 2 of a ResNet, 1 of a network without such stages; "
        "with weights of a run those of the run",
    )
    freeze_backbone: bool = Field(False, description="train only the head")
    head_bias: Literal["zero", "prior"] = Field(
        "zero", description="initial bias: 0, or each label's log-odds in train"
    )
    image_size: Annotated[int, Field(ge=32, le=MAX_IMAGE_SIZE)] | Literal["auto"] = Field(
        "auto",
        description="side of the square input in pixels; auto: 224 for ResNets of torchvision, "
        "else, and with weights of a run, that of the weights",
    )
    mean: Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)] | None = Field(
        None,
        description="of red, green and blue in [0, 1], which is subtracted from the pixels; null: "
        "that of the weights",
    )
    std: Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)] | None = Field(
        None, description="standard deviation that the pixels are divided by; null: as for mean"
    )
    resize: Literal["squash", "crop", "pad"] = Field(
        "squash", description="how a picture becomes a square in evaluation and prediction"
    )

    @field_validator("std")
    @classmethod
    def _check_std(cls, value: tuple[float, float, float] | None) -> Any:
        if value is not None and min(value) <= 0:
            raise ValueError(f"wanted three numbers above 0, got {list(value)}")
        return value


class AugmentConfig(Section):
    """Random changes of pictures in training; evaluation makes none."""

    crop_scale: Annotated[tuple[float, float], Field(strict=False)] = Field(
        (0.8, 1.0),
        description="least and largest share of the area that the random resized crop keeps",
    )
    horizontal_flip: Fraction = Field(0.5, description="probability of a mirror image")
    color_jitter: Fraction = Field(
        0.0, description="strength of brightness, contrast and saturation jitter"
    )
    rand_augment: int = Field(0, ge=0, le=10, description="RandAugment operations per picture")

    @field_validator("crop_scale")
    @classmethod
    def _check_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError(f"wanted [least, most], 0 < least <= most <= 1, got {list(value)}")
        return value


SOLVED_HEADS = ("solve_head_first", "solve_head_each", "solve_head_last")
"""Keys of `train` by which fine-tuning solves for its head."""


class TrainConfig(Section):
    """The optimizer, its schedule, and how training runs."""

    epochs: int = Field(10, gt=0, description="passes over the training images")
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        32,
        description="images for each optimizer step, of all processes together; auto: measured "
        "before training, the largest power of two up to 512 that fits into a GPU, the fastest of "
        "8 to 64 on a CPU",
    )
    accumulate: int = Field(
        1,
        gt=0,
        description="pieces that a batch is computed in (gradient accumulation), to save memory",
    )
    optimizer: Literal["auto", "adamw", "sgd", "lbfgs"] = Field(
        "auto",
        description="lbfgs solves for the head of a frozen backbone, to convergence; "
        "auto: lbfgs if features are computed once, else adamw",
    )
    sampling: Literal["uniform", "balanced"] = Field(
        "uniform",
        description="uniform: an epoch has each picture once; balanced: as many pictures, those "
        "with rare labels more often",
    )
    cache_features: Literal["auto", "off"] = Field(
        "auto", description="auto: a frozen backbone's features are computed once, and kept"
    )
    cache_views: int = Field(
        1,
        gt=0,
        description="versions of a picture whose features are computed: itself; 2: its mirror "
        "image too; more: random crops besides",
    )
    solve_head_first: bool = Field(
        False,
        description="fine-tuning starts from the best head for the pretrained backbone, which "
        "lbfgs finds first",
    )
    solve_head_each: bool = Field(
        False,
        description="after each epoch lbfgs finds the best head for the backbone as it is then; "
        "the epoch is validated with it, and training goes on from it; more than solve_head_last",
    )
    solve_head_last: bool = Field(
        False,
        description="after the last epoch lbfgs finds the best head for the backbone as it is "
        "then; kept where it is better",
    )
    lr: float = Field(1e-4, gt=0, description="learning rate of the backbone")
    head_lr: float = Field(1e-3, gt=0, description="learning rate of the head")
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="each layer of the backbone learns at this share of the rate of the layer "
        "after it; the last one learns at lr; null: all at lr",
    )
    weight_decay: float = Field(0.01, ge=0, description="on weights, not on biases or BatchNorm")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    warmup_ratio: Fraction = Field(
        0.1, description="share of all steps with a rising learning rate; then a cosine to 0"
    )
    clip_grad_norm: float | None = Field(1.0, gt=0, description="null: no clipping")
    ema: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] | None = Field(
        None,
        description="decay of an exponential moving average of the weights, such as 0.999; the "
        "average is validated and saved; auto: it reaches back over half of the steps, and begins "
        "with a head that is solved first; null: the weights themselves",
    )
    not_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="a step whose loss or gradient is not finite stops training, or is skipped; "
        "its pictures are named",
    )
    save_minutes: float = Field(
        10,
        gt=0,
        description="the state to resume from is saved after so many minutes within an epoch, and "
        "after each epoch",
    )
    early_stopping: int | None = Field(
        None, gt=0, description="stop after this many epochs without a better mAP; null: never"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the backbone; auto: bfloat16 if the hardware is fast at it"
    )
    sync_batch_norm: bool | Literal["auto"] = Field(
        "auto",
        description="with several processes: BatchNorm uses the statistics of all of them, as one "
        "process would; auto: if each has fewer than 16 images of a batch",
    )
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="processes that decode pictures; auto: as many as the model needs"
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="of the split, the initial head, the order of images and the augmentation",
    )
    deterministic: bool = Field(
        False, description="the same bits in every run on a GPU too, where it is slower"
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        [], description="services that get the numbers of every epoch; each is an extra to install"
    )

    def count_solutions(self) -> int:
        """Return how often fine-tuning solves for its head."""
        later = self.epochs if self.solve_head_each else int(self.solve_head_last)
        return int(self.solve_head_first) + later


class LossConfig(Section):
    """The loss: sigmoid cross entropy, or one of its relatives."""

    name: Literal["sce", "asl", "focal"] = Field(
        "sce", description="sigmoid cross entropy, asymmetric loss, focal loss"
    )
    pos_weight: Literal["auto"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description="weight of positive targets: auto (negatives / positives), or a label map"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="s moves a target t to t * (1 - s) + s / 2"
    )
    gamma_neg: float | None = Field(
        None, ge=0, description="of asl: reduces the weight of easy negatives; 4"
    )
    gamma_pos: float | None = Field(
        None, ge=0, description="of asl: reduces the weight of easy positives; 1"
    )
    clip: float | None = Field(
        None, ge=0, lt=1, description="of asl: negatives below this probability have no loss; 0.05"
    )
    gamma: float | None = Field(
        None, ge=0, description="of focal: reduces the weight of easy targets; 2"
    )
    alpha: float | None = Field(
        None, gt=0, lt=1, description="of focal: weight of positives, 1 - alpha of negatives; 0.25"
    )
    backend: Literal["auto", "triton", "torch"] = Field(
        "auto", description="auto: Triton's kernel on a GPU, plain torch elsewhere"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_loss_settings(cls, tree: Any) -> Any:
        """Fill in the loss's own defaults, so that a run's config keeps the values it used."""
        if not isinstance(tree, dict):
            return tree
        defaults = LOSS_SETTINGS.get(tree.get("name", "sce"), {})
        return {**tree, **{key: v for key, v in defaults.items() if tree.get(key) is None}}

    @field_validator("gamma_neg", "gamma_pos", "clip", "gamma", "alpha")
    @classmethod
    def _check_owner(cls, value: float | None, info: ValidationInfo) -> float | None:
        name = info.data.get("name")
        if value is not None and name and info.field_name not in LOSS_SETTINGS.get(name, {}):
            (owner,) = (name for name, keys in LOSS_SETTINGS.items() if info.field_name in keys)
            raise ValueError(f"belongs to {owner}; take it out, or set loss.name: {owner}")
        return value


LOSS_SETTINGS = {
    "asl": {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05},
    "focal": {"gamma": 2.0, "alpha": 0.25},
}
"""Loss -> its own keys of `loss:`, and their defaults."""


class EvalConfig(Section):
    """Thresholds, calibration and metrics: how scores become decisions and numbers."""

    views: Literal["plain", "mirror"] = Field(
        "plain",
        description="versions of a picture that validation, eval and predict score: itself, or its "
        "mirror image too (the mean of both logits, for twice the forward passes)",
    )
    thresholds: Literal["fixed", "global", "per_label", "precision"] = Field(
        "per_label",
        description="from which probability a label counts as present, fitted on validation: the "
        "highest F1 of all labels (global) or of each, rare ones drawn to the global one "
        "(per_label), one that is shown to reach the wanted precision; fixed: `threshold`",
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="of thresholds: fixed")
    precision: float = Field(0.9, gt=0, lt=1, description="wanted, of thresholds: precision")
    calibration: Literal["none", "temperature", "platt"] = Field(
        "none",
        description="corrects probabilities so that 0.8 means 80 %, fitted on validation: one "
        "slope for all labels (temperature), or a line for each (platt)",
    )
    review: Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None = Field(
        None,
        description="calibrated probabilities between these two are for a person to review; "
        "predict names such labels of a picture, eval counts them",
    )
    ap: Literal["sklearn", "voc_interpolated", "voc_11point"] = Field(
        "sklearn", description="average precision: not interpolated, as VOC since 2010, as VOC 2007"
    )

    @model_validator(mode="after")
    def _check_review(self) -> Self:
        if self.review is None:
            return self
        if self.calibration == "none":
            raise ValueError(
                "review is a range of calibrated probabilities; set eval.calibration: platt (or "
                "temperature) too"
            )
        if self.review[0] >= self.review[1]:
            raise ValueError(f"review: {self.review[0]:g} is not below {self.review[1]:g}")
        return self


class Config(Section):
    """The config of a run."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    eval: EvalConfig = EvalConfig()
    output: FilePath | None = Field(
        None, description="run directory; default: runs/<config file's name>"
    )
    note: str | None = Field(None, description="your words on the run, for `mlfinetune runs`")

    def update_section(self, section: str, **values: Any) -> Self:
        """Return a copy with other values in one section, which are taken as they are.

        For example `config.update_section("train", batch_size=64)`.
        """
        changed = getattr(self, section).model_copy(update=values)
        return self.model_copy(update={section: changed})

    @model_validator(mode="after")
    def _check_solver(self) -> Self:
        for key in SOLVED_HEADS:
            if getattr(self.train, key) and self.model.freeze_backbone:
                raise ValueError(
                    f"train.{key} is for fine-tuning: with model.freeze_backbone: true the head is "
                    "solved for and kept; take one of them out"
                )
        if self.train.layer_decay is not None and self.model.freeze_backbone:
            raise ValueError(
                "train.layer_decay is for fine-tuning: with model.freeze_backbone: true no layer "
                "of the backbone learns; take one of them out"
            )
        keeps = self.model.freeze_backbone and self.train.cache_features != "off"
        if self.train.optimizer == "lbfgs" and not keeps:
            raise ValueError(
                "train.optimizer: lbfgs works only on kept features; set "
                "model.freeze_backbone: true and train.cache_features: auto, or use adamw or sgd"
            )
        return self
