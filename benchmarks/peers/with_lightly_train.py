"""LightlyTrain's train_image_classification on torchvision's resnet50."""

import time

import lightly_train
import numpy as np
import pandas as pd
import torch
from job import load
from PIL import Image
from safetensors.torch import load_file

WHOLE = {"min_scale": 1.0, "max_scale": 1.0, "min_ratio": 0.01, "max_ratio": 100.0}


def absolute(table, images, out):
    """Write tables with absolute paths, which LightlyTrain needs; return their paths."""
    rows = pd.read_csv(table)
    rows["image"] = images + "/" + rows["image"]
    rows.to_csv(out, index=False)
    return out


def score(job):
    """Return (N, L) scores of the best epoch's model, applied as in validation."""
    model = lightly_train.load_model(f"{job.folder}/out/exported_models/exported_best.pt")
    rows = [f"{job.images}/{name}" for name in pd.read_csv(job.val)["image"]]
    scores = np.zeros((len(rows), len(job.labels)))
    for start in range(0, len(rows), job.batch_size):
        batch = [Image.open(path).convert("RGB") for path in rows[start : start + job.batch_size]]
        batch = [image.resize((224, 224), Image.Resampling.BOX) for image in batch]
        for row, found in enumerate(model.predict_batch(batch, threshold=-1.0), start):
            scores[row, found["labels"].cpu()] = found["scores"].cpu()
    return scores


def main():
    """Train, validate after every epoch."""
    job = load()
    torch.save(load_file(job.weights), f"{job.folder}/backbone.pt")
    train = absolute(job.train, job.images, f"{job.folder}/train.csv")
    epoch = -(-len(pd.read_csv(train)) // job.batch_size)
    steps = job.epochs * epoch
    lightly_train.train_image_classification(
        out=f"{job.folder}/out",
        model="torchvision/resnet50",
        classification_task="multilabel",
        data={
            "train": train,
            "val": absolute(job.val, job.images, f"{job.folder}/val.csv"),
            "classes": dict(enumerate(job.labels)),
            "csv_image_column": "image",
            "csv_label_column": "labels",
            "label_delimiter": "|",
        },
        steps=steps,
        batch_size=job.batch_size,
        gradient_accumulation_steps=1,
        num_workers=job.workers,
        precision="bf16-mixed" if job.bf16 else "32-true",
        model_args={
            "backbone_weights": f"{job.folder}/backbone.pt",
            "backbone_freeze": job.frozen,
            "lr": 2e-2 if job.frozen else 3e-4,
            "lr_warmup_steps": round(0.1 * steps),
        },
        transform_args={
            "image_size": (224, 224),
            "random_crop": WHOLE if job.frozen else {"min_scale": 0.35},
            "color_jitter": None,
            "val": {"random_crop": WHOLE},
        },
        metric_args={"watch_metric": "val_metric/avg_precision_macro"},
        logger_args={"val_every_num_steps": epoch},
        loader_args={"drop_last": False},
    )
    started = time.perf_counter()
    scores = score(job)
    print(f"mAP {job.record(scores, aside_s=time.perf_counter() - started):.4f}")


if __name__ == "__main__":
    main()
