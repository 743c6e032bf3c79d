"""The recipe of experiments/cpu/cifar10.yaml, student alone, as a hand-written PyTorch loop: is it ours that is wrong?

    python benchmarks/pytorch_training.py --seed 0

Nothing but the images comes from this package: network, start, augmentation, optimizer and schedule are PyTorch's or
written here. In float32. Prints the training error of each epoch and the test error of the last.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# In a process of its own: TensorFlow and PyTorch in one ended by a segmentation fault.
SAVE_IMAGES = """
import sys, numpy
from spkd_keras import data
splits = data.load("cifar10", image_size=16, validation=0.1)
train, test = splits.train, splits.test
numpy.savez(sys.argv[1], train.pixels, train.labels, test.pixels, test.labels)
"""
NAMES = [f"arr_{number}" for number in range(4)]
EPOCHS, BATCH, PADDING = 15, 128, 4
DROPS = {round(part * EPOCHS) for part in (0.3, 0.6, 0.8)}
MEAN, STD = torch.tensor([125.3, 123.0, 113.9]), torch.tensor([63.0, 62.1, 66.7])


class Block(nn.Module):
    """Two convolutions, each behind its normalisation, and what they are added to."""

    def __init__(self, given: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(given), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(given, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(given, channels, 1, stride, bias=False) if given != channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs the block."""
        h = functional.relu(self.norm1(x))
        x = x if self.shortcut is None else self.shortcut(h)
        return x + self.conv2(functional.relu(self.norm2(self.conv1(h))))


def wide_resnet_16_1() -> nn.Module:
    """WideResNet-16-1 as Zagoruyko & Komodakis have it, started by He's rule over the outputs."""
    given, parts = 16, [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        parts += [Block(given, channels, stride), Block(channels, channels, 1)]
        given = channels
    parts += [nn.BatchNorm2d(given), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, 10)]
    network = nn.Sequential(*parts)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return network.to(memory_format=torch.channels_last)


def load() -> list[torch.Tensor]:
    """Standardised training images as (n, channels, height, width), their labels, and the same of the test images."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        subprocess.run([sys.executable, "-c", SAVE_IMAGES, str(file)], check=True)
        with np.load(file) as saved:
            train, labels, test, test_labels = (torch.tensor(saved[name]) for name in NAMES)
    images = [((pixels.float() - MEAN) / STD).permute(0, 3, 1, 2) for pixels in (train, test)]
    return [images[0], labels.long(), images[1], test_labels.long()]


def augmented(pixels: torch.Tensor) -> torch.Tensor:
    """Pads by mirrored pixels, crops at random and flips every second image."""
    count, _, side, _ = pixels.shape
    padded = functional.pad(pixels, (PADDING,) * 4, mode="reflect")
    rows, columns = (torch.randint(2 * PADDING + 1, (count, 1)) + torch.arange(side) for _ in range(2))
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    cut = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def errors(network: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> int:
    """How many images are taken for another class."""
    network.eval()
    with torch.no_grad():
        wrong = [(network(x).argmax(1) != y).sum() for x, y in zip(pixels.split(1000), labels.split(1000), strict=True)]
    network.train()
    return int(sum(wrong))


def main() -> None:
    """Trains one seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    pixels, labels, test_pixels, test_labels = load()
    torch.manual_seed(seed)
    network = wide_resnet_16_1()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] *= 0.2 if epoch in DROPS else 1.0
        wrong = 0
        for batch in torch.randperm(len(pixels)).split(BATCH):
            logits = network(augmented(pixels[batch]))
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
            wrong += int((logits.argmax(1) != labels[batch]).sum())
        print(f"epoch {epoch + 1}: training error {100 * wrong / len(pixels):.2f} %", flush=True)
    print(f"seed {seed}: test error {100 * errors(network, test_pixels, test_labels) / len(test_labels):.2f} %")


if __name__ == "__main__":
    main()
