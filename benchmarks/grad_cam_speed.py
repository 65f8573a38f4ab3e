"""Grad-CAM of 64 tiles by ResNet-50 at 224 px: ours, pytorch-grad-cam, the forward pass alone.

python benchmarks/grad_cam_speed.py
"""

import copy

import torch
from harness import keep, race
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from crc_helpers import models
from crc_helpers.grad_cam import enlarge, grad_cam
from crc_helpers.pretraining import channels_last

TILES = 64


def main() -> None:
    """Race in float32, as the lessons explain."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = models.Classifier(models.Encoder("resnet50"), 2).eval().to(device)
    model = model.to(memory_format=torch.channels_last)
    images = channels_last(torch.rand(TILES, 3, 224, 224, device=device))
    hooked = copy.deepcopy(model)  # their hooks stay on the network, and would slow ours
    theirs = GradCAM(hooked, [hooked.encoder.stage("layer4")])
    targets = [ClassifierOutputTarget(1)] * TILES

    def forward() -> None:
        with torch.no_grad():
            model(images)

    contenders = {
        "ours": lambda: enlarge(grad_cam(model, images, target=1).maps, 224),
        "pytorch-grad-cam": lambda: theirs(input_tensor=images, targets=targets),
        "forward": forward,
    }
    bars = {"ours / pytorch-grad-cam": 3.0, "ours / forward": round(1 / 1.15, 3)}
    keep(f"Grad-CAM, ResNet-50, {TILES} tiles of 224 px", race(contenders), TILES, "maps", bars)


if __name__ == "__main__":
    main()
