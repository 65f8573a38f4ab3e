"""Heat maps of several packages, scored against the drawn truth: the table of docs/benchmark.md.

The shipped classifier explains the class SSA for the test tiles of SSA that it recognises.
"""

import captum.attr
import numpy as np
import pytorch_grad_cam as peer
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from crc_helpers import data, evaluation, explanations, grad_cam, models, runs
from crc_helpers.augmentation import shrink
from crc_helpers.fine_tuning import predict
from crc_helpers.layers import find_layer


def peers(model: models.Classifier, layer: torch.nn.Module) -> dict:
    """Return explainers of captum and pytorch-grad-cam: images (N, 3, H, W) to maps (N, h, w)."""

    def of_peer(method: type):
        def explain(x: Tensor) -> Tensor:
            with method(model=model, target_layers=[layer]) as cam:
                return torch.from_numpy(cam(x, [ClassifierOutputTarget(1)] * len(x)))

        return explain

    layer_grad_cam = captum.attr.LayerGradCam(model, layer)
    names = ("GradCAM", "GradCAMPlusPlus", "XGradCAM", "EigenCAM", "ScoreCAM", "AblationCAM")
    return {
        "captum: LayerGradCam": lambda x: layer_grad_cam.attribute(x, 1).relu().detach()[:, 0],
        **{f"pytorch-grad-cam: {name}": of_peer(getattr(peer, name)) for name in names},
    }


def ours(model: models.Classifier) -> dict:
    """Return the course's explainers; captum computes the last two."""

    def one(x: Tensor) -> Tensor:
        return torch.ones(len(x), dtype=int)

    return {
        "ours: Grad-CAM": lambda x: grad_cam.grad_cam(model, x, 1).maps,
        "ours: HiResCAM": lambda x: explanations.hires_cam(model, x, 1),
        "ours: LayerCAM": lambda x: explanations.layer_cam(model, x, 1),
        "captum: Integrated Gradients": lambda x: explanations.integrated_gradients(
            model, x, one(x)
        ),
        "captum: Occlusion": lambda x: explanations.occlusion(model, x, one(x)),
        "control: centre": lambda x: torch.tensor(explanations.centre_map(len(x), x.shape[-1])),
        "control: edges": lambda x: torch.from_numpy(explanations.edge_map(x, x.shape[-1] / 24)),
    }


def main() -> None:
    """Print a row a method: hit and mass with intervals over slides."""
    tiles, parts = data.recall("runs/none", "shipped")
    model, facts = models.load_classifier(runs.ROOT / "weights" / "classifier.safetensors")
    test = parts.test[tiles.labels[parts.test] == 1]
    said = predict(model, tiles.images[test], facts["size"], runs.make_fabric(0)).argmax(axis=1)
    test = test[said == 1]
    masks, slides = tiles.masks[test], tiles.groups[test]
    images = shrink(torch.from_numpy(np.array(tiles.images[test])), facts["size"])
    layer = find_layer(model, grad_cam.last_layer(model, images[:1]))

    def stated(values: np.ndarray) -> str:
        kept = ~np.isnan(values)
        v = values[kept]
        ends = evaluation.bootstrap_interval(lambda k: v[k].mean(), len(v), slides[kept])
        return f"{v.mean():.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"

    print(f"{len(test)} tiles of {len(set(slides))} slides\n")
    print("| map of SSA | hit | mass |\n|---|---|---|")
    for name, explain in (ours(model) | peers(model, layer)).items():
        maps = torch.cat([explain(part).float().relu() for part in images.split(32)])
        maps = F.interpolate(maps[:, None], size=masks.shape[1:], mode="bilinear")[:, 0].numpy()
        measured = [f(maps, masks) for f in (grad_cam.hits, grad_cam.mass_inside)]
        print(f"| {name} | {' | '.join(map(stated, measured))} |", flush=True)
    area = masks.mean(axis=(1, 2))
    print(f"| chance (area) | {stated(area)} | {stated(area)} |")


if __name__ == "__main__":
    main()
