"""Other losses than NT-Xent, on the loop of lesson 03 (lesson 08)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def moco_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of finding each query's own key among it and a queue.

    queries, keys: (N, D), row i of both from the same tile; queue: (K, D) keys of earlier batches.
    Source: He et al. 2020, arXiv 1911.05722 (MoCo), equation 1.
    """
    q, k, queue = (F.normalize(x, dim=1) for x in (queries, keys, queue))
    logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ queue.T], dim=1)  # (N, 1 + K)
    return F.cross_entropy(logits / temperature, torch.zeros(len(q), dtype=int, device=q.device))


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Return the mean negative cosine of predictions (N, D) and the other view's projections.

    No gradient flows into the projections: without this stop everything collapses.
    Source: Chen & He 2021, arXiv 2011.10566 (SimSiam), equation 4.
    """
    one, other = (F.cosine_similarity(p, z.detach()) for p, z in ((p1, z2), (p2, z1)))
    return -(one.mean() + other.mean()) / 2


def barlow_twins_loss(z1: Tensor, z2: Tensor, redundancy: float = 5e-3) -> Tensor:
    """Return how far the correlation matrix of two batches of views (N, D) is from identity.

    redundancy: weight of what lies off the diagonal.
    Source: Zbontar et al. 2021, arXiv 2103.03230, equation 1.
    """
    one, other = (F.batch_norm(z, None, None, training=True) for z in (z1, z2))
    correlation = one.T @ other / len(z1)  # (D, D)
    gap = (correlation - torch.eye(len(correlation), device=z1.device)).square()
    return gap.diagonal().sum() + redundancy * (gap.sum() - gap.diagonal().sum())


def sup_con_loss(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent with every view of the same class as a positive: the bound with labels.

    z1, z2: (N, D); labels: (N,). With a label for each tile of its own it is NT-Xent.
    Source: Khosla et al. 2020, arXiv 2004.11362, equation 2.
    """
    z, y = F.normalize(torch.cat([z1, z2]).float(), dim=1), torch.cat([labels, labels])
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    positive = (y[:, None] == y) & ~itself  # (2N, 2N)
    log_p = logits.log_softmax(dim=1).masked_fill(~positive, 0)
    return -(log_p.sum(dim=1) / positive.sum(dim=1)).mean()
