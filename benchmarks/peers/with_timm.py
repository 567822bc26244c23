"""timm's resnet50 with a BCE head, and a plain training loop around it."""

from functools import partial

import pandas as pd
import timm
import torch
from job import MEAN, STD, load
from PIL import Image
from safetensors.torch import load_file
from timm.utils import freeze
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

BODY = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]


class Pictures(Dataset):
    """Dataset of (3, 224, 224) float pictures and their targets."""

    def __init__(self, table, images, labels, transform):
        self.table, self.images, self.transform = pd.read_csv(table), images, transform
        self.targets = self.table["labels"].str.get_dummies("|").reindex(columns=labels)
        self.targets = torch.tensor(self.targets.fillna(0).values, dtype=torch.float32)

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        image = Image.open(f"{self.images}/{self.table['image'][index]}").convert("RGB")
        return self.transform(image), self.targets[index]


def transforms(job):
    """Return the transforms of training and of validation."""
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    squash, crop = v2.Resize((224, 224)), v2.RandomResizedCrop(224, scale=(0.35, 1.0))
    train = v2.Compose([squash if job.frozen else crop, v2.RandomHorizontalFlip(), *end])
    return train, v2.Compose([squash, *end])


def build(job, device):
    """Return the model with its weights, in channels_last."""
    model = timm.create_model("resnet50", pretrained=False, num_classes=len(job.labels))
    model.load_state_dict(load_file(job.weights), strict=False)
    if job.frozen:
        freeze(model, BODY)
    return model.to(device, memory_format=torch.channels_last)


def main():
    """Train, validate after every epoch."""
    job = load()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=job.bf16)
    train_transform, val_transform = transforms(job)
    train = Pictures(job.train, job.images, job.labels, train_transform)
    val = Pictures(job.val, job.images, job.labels, val_transform)
    loader = partial(
        DataLoader, batch_size=job.batch_size, num_workers=job.workers, persistent_workers=True
    )
    train_loader, val_loader = loader(train, shuffle=True), loader(val)
    model = build(job, device)
    head = [p for name, p in model.named_parameters() if name.startswith("fc.")]
    body = [p for n, p in model.named_parameters() if not n.startswith("fc.") and p.requires_grad]
    groups = [{"params": head, "lr": 3e-2 if job.frozen else 1e-3}]
    if body:
        groups.append({"params": body, "lr": 1e-4})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    rates, steps = [group["lr"] for group in groups], job.epochs * len(train_loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps, pct_start=0.1)
    criterion = nn.BCEWithLogitsLoss()
    for epoch in range(job.epochs):
        model.train()
        for images, targets in train_loader:
            images = images.to(device, memory_format=torch.channels_last)
            with autocast:
                logits = model(images)
            loss = criterion(logits.float(), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode(), autocast:
            logits = [
                model(images.to(device, memory_format=torch.channels_last)).float().cpu()
                for images, _ in val_loader
            ]
        print(f"epoch {epoch + 1} mAP {job.record(torch.cat(logits).numpy()):.4f}", flush=True)
        torch.save(model.state_dict(), f"{job.folder}/last.pt")


if __name__ == "__main__":
    main()
