"""The hand-written PyTorch loop that `step_time.py` compares with: one process that makes a step when it is told to.

It reads a line with the case as JSON, answers with the numbers of parameters, and from then on makes one step for each
line that it reads and answers with its seconds. The networks have the layers of ours; strided convolutions pad on both
sides, TensorFlow's on one.
"""

import json
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded to keep the size."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def normalised(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: Any = nn.ReLU) -> Any:
    """Convolution, batch normalisation and, if there is one, an activation."""
    layers = [convolution(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([relu(inplace=True)] if relu else []))


class WideBlock(nn.Module):
    """Two pre-activated 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1, self.conv2 = convolution(inputs, outputs, 3, stride), convolution(outputs, outputs, 3)
        self.shortcut = convolution(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: Any) -> Any:
        """Returns the sum of both ways."""
        activated = functional.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.conv2(functional.relu(self.bn2(self.conv1(activated)), inplace=True))


class ShuffleUnit(nn.Module):
    """The unit of ShuffleNetV2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride, entering = stride, inputs // 2 if stride == 1 else inputs
        self.main = nn.Sequential(
            normalised(entering, half, 1),
            normalised(half, half, 3, stride, half, relu=None),
            normalised(half, half, 1),
        )
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                normalised(inputs, inputs, 3, stride, inputs, relu=None), normalised(inputs, half, 1)
            )

    def forward(self, x: Any) -> Any:
        """Returns the two ways, their channels interleaved."""
        first, second = x.chunk(2, dim=1) if self.stride == 1 else (x, x)
        return functional.channel_shuffle(torch.cat([self.shortcut(first), self.main(second)], dim=1), 2)


class Network(nn.Module):
    """Pixels to logits, and what the last stage gives."""

    def __init__(self, body: Any, head: Any, features: int, classes: int) -> None:
        super().__init__()
        self.body, self.head, self.logits = body, head, nn.Linear(features, classes)

    def forward(self, pixels: Any) -> Any:
        """Returns the last stage's activations and the logits."""
        stage = self.body(pixels.float() / 127.5 - 1)
        return stage, self.logits(self.head(stage).mean(dim=(2, 3)))


def wide_resnet(depth: int, width: float, num_classes: int) -> Network:
    """WideResNet-depth-width."""
    layers, inputs = [convolution(3, 16, 3)], 16
    for stage, channels in enumerate((16, 32, 64)):
        outputs = int(channels * width)
        for block in range((depth - 4) // 6):
            layers.append(WideBlock(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    head = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
    return Network(nn.Sequential(*layers), head, inputs, num_classes)


def mobilenet(width: float, num_classes: int) -> Network:
    """MobileNet-width."""
    inputs = int(32 * width)
    layers = [normalised(3, inputs, 3, 2, relu=nn.ReLU6)]
    for stage, (channels, blocks) in enumerate(((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))):
        outputs = int(channels * width)
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers.append(normalised(inputs, inputs, 3, stride, inputs, relu=nn.ReLU6))
            layers.append(normalised(inputs, outputs, 1, relu=nn.ReLU6))
            inputs = outputs
    return Network(nn.Sequential(*layers), nn.Identity(), inputs, num_classes)


def shufflenet_v2(width: float, num_classes: int) -> Network:
    """ShuffleNetV2-width for small images."""
    layers, inputs = [normalised(3, 24, 3)], 24
    for stage, units in enumerate((4, 8, 4)):
        outputs = {0.5: 48, 1.0: 116, 2.0: 244}[width] * 2**stage
        for unit in range(units):
            layers.append(ShuffleUnit(inputs, outputs, 1 if unit else 2))
            inputs = outputs
    features = 1024 if width < 2 else 2048
    return Network(nn.Sequential(*layers), normalised(inputs, features, 1), features, num_classes)


def similarity_matrix(activations: Any) -> Any:
    """The row-normalised Gram matrix."""
    flat = activations.float().flatten(1)
    return functional.normalize(flat @ flat.T, dim=1)


def build(network: dict[str, Any]) -> Network:
    """Builds a network in the layout that is fastest on a CPU."""
    builder = {"wide_resnet": wide_resnet, "mobilenet": mobilenet, "shufflenet_v2": shufflenet_v2}[network.pop("model")]
    return builder(**network).to(memory_format=torch.channels_last)


def main() -> None:
    """Builds the case, then makes a step for each line."""
    case = json.loads(sys.stdin.readline())
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    teacher, student = build(case["teacher"]).eval(), build(case["student"]).train()
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    shape = (case["batch_size"], 3, *case["image_shape"][:2])
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(memory_format=torch.channels_last)
    labels = torch.randint(0, case["classes"], shape[:1])

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=case["precision"] == "bfloat16"):
            with torch.no_grad():
                teacher_stage, _ = teacher(pixels)
            student_stage, logits = student(pixels)
        difference = similarity_matrix(teacher_stage) - similarity_matrix(student_stage)
        loss = functional.cross_entropy(logits.float(), labels) + 3000.0 * difference.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss)

    counts = [sum(weight.numel() for weight in network.parameters()) for network in (teacher, student)]
    print(json.dumps({"parameters": counts, "version": torch.__version__}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
