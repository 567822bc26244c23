"""Hugging Face's Trainer with timm's resnet50, `problem_type="multi_label_classification"`."""

import pandas as pd
import torch
from job import MEAN, STD, load
from PIL import Image
from safetensors.torch import load_file
from timm.utils import freeze
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers import (
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    Trainer,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

BODY = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]


class Pictures(Dataset):
    """Dataset of the model's inputs: pixel_values and labels."""

    def __init__(self, table, images, labels, transform):
        self.table, self.images, self.transform = pd.read_csv(table), images, transform
        self.targets = self.table["labels"].str.get_dummies("|").reindex(columns=labels)
        self.targets = torch.tensor(self.targets.fillna(0).values, dtype=torch.float32)

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        image = Image.open(f"{self.images}/{self.table['image'][index]}").convert("RGB")
        return {"pixel_values": self.transform(image), "labels": self.targets[index]}


def build(job):
    """Return the model with its weights."""
    config = TimmWrapperConfig(
        architecture="resnet50",
        num_labels=len(job.labels),
        problem_type="multi_label_classification",
    )
    config.id2label = dict(enumerate(job.labels))
    config.label2id = {label: i for i, label in enumerate(job.labels)}
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(load_file(job.weights), strict=False)
    if job.frozen:
        freeze(model.timm_model, BODY)
    return model


def main():
    """Train, validate after every epoch."""
    job = load()
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    squash, crop = v2.Resize((224, 224)), v2.RandomResizedCrop(224, scale=(0.35, 1.0))
    augment = v2.Compose([squash if job.frozen else crop, v2.RandomHorizontalFlip(), *end])
    train = Pictures(job.train, job.images, job.labels, augment)
    val = Pictures(job.val, job.images, job.labels, v2.Compose([squash, *end]))
    model = build(job)
    head = [p for name, p in model.named_parameters() if ".fc." in name]
    body = [p for n, p in model.named_parameters() if ".fc." not in n and p.requires_grad]
    groups = [{"params": head, "lr": 3e-2 if job.frozen else 1e-3}]
    if body:
        groups.append({"params": body, "lr": 1e-4})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    steps = job.epochs * -(-len(train) // job.batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    arguments = TrainingArguments(
        output_dir=f"{job.folder}/trainer",
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch_size,
        per_device_eval_batch_size=job.batch_size,
        dataloader_num_workers=job.workers,
        dataloader_persistent_workers=True,
        bf16=job.bf16,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="best",
        save_total_limit=1,
        metric_for_best_model="mAP",
        greater_is_better=True,
        report_to="none",
        seed=0,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=val,
        compute_metrics=lambda results: {"mAP": job.record(results.predictions)},
        optimizers=(optimizer, schedule),
    )
    trainer.train()


if __name__ == "__main__":
    main()
