"""Guessed boxes against true ones: which guess is whose (Hungarian), and what it costs.

As in DETR (arXiv 2005.12872, section 3.1), with the weights of MCG-NJU/EVAD (`projects/evad/models/loss.py`,
`config.py`): 2 for the person, 5 for the distance of the edges, 2 for the generalised IoU, 12 for actions.
Departure: whether a guess is a person is a sigmoid with a focal loss (Deformable DETR's; an option there,
whose default is a softmax with a weight of 0.1 for nobody).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.core.model.localiser import focal_loss

PERSON, EDGES, OVERLAP, ACTIONS = 2.0, 5.0, 2.0, 12.0


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (arXiv 1902.09630) of paired boxes [..., 4] (`x1, y1, x2, y2`), in (-1, 1], [...]."""
    inside = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    both, hull = inside.prod(-1), around.prod(-1)
    either = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    tiny = torch.finfo(a.dtype).tiny
    return both / either.clamp_min(tiny) - (hull - either) / hull.clamp_min(tiny)


@torch.no_grad()
def assign(person: Tensor, boxes: Tensor, true: Tensor, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which guess is given to which true box, each at most once, at the least cost in all.

    `person` [B, Q] (before the sigmoid) and `boxes` [B, Q, 4] are guesses, `true` [K, 4] boxes in the same
    units (shares of the frame), `clips` int64 [K] their clips. Returns the clips, the guesses and the true
    boxes, int64 [M] each; M < K where a clip has more true boxes than guesses.
    """
    from scipy.optimize import linear_sum_assignment  # read here: core is imported where there is no scipy

    cost = (
        EDGES * (boxes[clips] - true[:, None]).abs().sum(2)
        - OVERLAP * generalised_iou(boxes[clips], true[:, None])
        - PERSON * person.float().sigmoid()[clips]
    ).cpu()  # [K, Q]
    of_clips = clips.cpu()
    rows, guesses = [], []
    for clip in of_clips.unique():
        own = (of_clips == clip).nonzero().flatten()
        i, j = linear_sum_assignment(cost[own].numpy())
        rows.append(own[torch.from_numpy(i)])
        guesses.append(torch.from_numpy(j))
    empty = torch.empty(0, dtype=torch.int64)
    row, guess = (torch.cat([empty, *parts]).to(true.device) for parts in (rows, guesses))
    return clips[row], guess, row


def matched_loss(
    person: Tensor,
    boxes: Tensor,
    true: Tensor,
    clips: Tensor,
    actions: Tensor | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """The loss of guesses, as `assign` gives them to true boxes; a scalar, float32.

    Summed over the boxes and divided by their number, the actions' [B, Q, C] against `targets` [K, C] the
    mean over matched boxes and classes; without true boxes only what is said of persons counts.
    """
    clip, guess, row = assign(person, boxes, true, clips)
    found = torch.zeros_like(person, dtype=torch.float32)
    found[clip, guess] = 1.0
    count = max(len(row), 1)
    loss = PERSON * focal_loss(person, found).sum() / count
    own, wanted = boxes[clip, guess], true[row]
    loss = loss + EDGES * (own - wanted).abs().sum() / count
    loss = loss + OVERLAP * (1 - generalised_iou(own, wanted)).sum() / count
    if actions is None or targets is None:
        return loss
    said = actions[clip, guess].float()
    each = F.binary_cross_entropy_with_logits(said, targets[row].float(), reduction="sum")
    return loss + ACTIONS * each / (count * targets.shape[1])
