"""Other ways to learn without labels, on the same loop and with the same MLP head."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from common import Objective, Study, Trainer, main, rows_of
from torch import Tensor, nn

from crc_helpers.objectives import barlow_twins_loss, moco_loss, simsiam_loss, sup_con_loss
from crc_helpers.pretraining import channels_last, effective_rank


class MoCo(nn.Module):
    """Momentum contrast: keys from a slowly following copy, negatives from a queue of them.

    size: of the queue, far below the number of tiles, or a tile would often be its own negative.
    Batch normalisation is not shuffled among devices as in the paper: there is one device.
    """

    def __init__(
        self, model: nn.Sequential, temperature: float, _labels: np.ndarray, size: int = 256
    ) -> None:
        super().__init__()
        self.temperature, self.keys = temperature, copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("queue", torch.randn(size, model[-1].out_dim))

    def forward(self, model: nn.Module, v1: Tensor, v2: Tensor, _index: np.ndarray) -> Tensor:
        with torch.no_grad():
            for key, query in zip(self.keys.parameters(), model.parameters(), strict=True):
                key.lerp_(query, 0.01)
            keys = self.keys(channels_last(v2)).float()
        loss = moco_loss(model(channels_last(v1)).float(), keys, self.queue, self.temperature)
        self.queue = torch.cat([keys, self.queue])[: len(self.queue)]  # the oldest drop out
        return loss


class SimSiam(nn.Module):
    """Two views, a predictor, no negatives; projections are normalised over the batch."""

    def __init__(self, model: nn.Sequential, _temperature: float, _labels: np.ndarray) -> None:
        super().__init__()
        width, hidden = model[-1].out_dim, 64
        self.norm = nn.BatchNorm1d(width)
        self.predictor = nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, model: nn.Module, v1: Tensor, v2: Tensor, _index: np.ndarray) -> Tensor:
        z1, z2 = self.norm(model(channels_last(torch.cat([v1, v2]))).float()).chunk(2)
        return simsiam_loss(self.predictor(z1), self.predictor(z2), z1, z2)


class BarlowTwins(nn.Module):
    """Two views whose features shall agree one by one and not repeat each other."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def forward(self, model: nn.Module, v1: Tensor, v2: Tensor, _index: np.ndarray) -> Tensor:
        return barlow_twins_loss(*model(channels_last(torch.cat([v1, v2]))).float().chunk(2))


class SupCon(nn.Module):
    """Contrast with labels, those of the tiles trained on: no method without labels may use it."""

    def __init__(self, _model: nn.Sequential, temperature: float, labels: np.ndarray) -> None:
        super().__init__()
        self.temperature, self.labels = temperature, torch.from_numpy(labels)

    def forward(self, model: nn.Module, v1: Tensor, v2: Tensor, index: np.ndarray) -> Tensor:
        z1, z2 = model(channels_last(torch.cat([v1, v2]))).chunk(2)
        return sup_con_loss(z1, z2, self.labels[index].to(z1.device), self.temperature)


OBJECTIVES: dict[str, Objective | None] = {
    "random encoder": None,
    "NT-Xent": None,  # what `pretrain` takes if it is given no other
    "MoCo": MoCo,
    "SimSiam": SimSiam,
    "Barlow Twins": BarlowTwins,
    "SupCon": SupCon,
}


plan = partial(rows_of, objective=OBJECTIVES)


def row(t: Trainer, objective: str) -> dict:
    """Probe for all classes, on the test part, and the effective rank of the features."""
    if objective == "random encoder":
        encoder = t.random_encoder()
    else:
        mlp = replace(t.recipe, head="mlp")
        encoder = t.pretrained(mlp, objective=OBJECTIVES[objective])
    rank = effective_rank(t.features(encoder, t.parts.train))
    return {"effective_rank": rank} | t.score(t.probe(encoder))


STUDY = Study("objectives", plan, row, all_classes=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
