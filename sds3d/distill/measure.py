"""How far a student's samples are from the data and from its teacher's converged samples."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.distillation.method import Distillation
from core.distillation.students import sample_by_solver
from core.metrics import (
    chamfer_distance,
    frechet_distance,
    mmd_squared,
    mode_weights,
    sliced_wasserstein,
)
from core.solvers.ddim import DDIM

from .digits import digits
from .grounds import NamedGround

MMD_SAMPLES = 1000
"""MMD compares all pairs; more would only cost."""


def draw(
    method: Distillation, ground: NamedGround, nfe: int, n: int, seed: int
) -> tuple[list[Tensor], Conditioning | None]:
    """n of the student's samples with the states that led to them, and their conditioning.

    Raises ValueError where the method has no student for `nfe`.
    """
    generator = torch.Generator().manual_seed(seed)
    cond = conditioning(ground, n, generator, method)
    start = method.noise(n, generator)
    with torch.no_grad():
        return method.sample(start, nfe, cond, generator), cond


def conditioning(
    ground: NamedGround, n: int, generator: torch.Generator, method: Distillation | None = None
) -> Conditioning | None:
    """Classes in the data's own proportions; a guided student is asked for its lowest scale.

    The same draws for every method, so that one seed gives students and teachers one noise.
    """
    if method is not None and not method.is_conditional:
        return None
    cond = ground.ground.data(n, generator).cond
    if method is None or cond is None:
        return cond
    asked = method.ground.data(1, torch.Generator().manual_seed(0)).cond
    if asked is None or asked.guidance_scale is None:
        return cond
    return replace(cond, guidance_scale=torch.ones(n))


def teacher_samples(ground: NamedGround, n: int, seed: int, steps: int = 64) -> Tensor:
    """n samples of the teacher by DDIM in `steps`, from the noise that students get too."""
    generator = torch.Generator().manual_seed(seed)
    cond = conditioning(ground, n, generator)
    x = ground.ground.noise(n, generator)
    with torch.no_grad():
        times = ground.ground.grid(steps)
        return sample_by_solver(ground.ground.teacher, DDIM(), x, times, cond)[-1]


def measure(
    ground: NamedGround,
    samples: Tensor,
    teacher: Tensor,
    seed: int,
    *,
    are_directions: bool = False,
) -> dict[str, float]:
    """Distances of samples [N, ...]; less is better. Directions are compared with directions.

    sliced_wasserstein, mmd      to fresh data
    chamfer                      mean of the samples' Chamfer distances to the nearest of the data's
                                 clouds, on clouds; the distances above know no order of points
                                 and are left out there
    to_teacher                   sliced Wasserstein distance to the teacher's samples
    mode_weight_error            largest error of a mode's weight, on mixtures; not of directions
    frechet                      on the features of the frozen classifier, on digits, to the images
                                 that the teacher was trained on; not of directions
    """
    generator = torch.Generator().manual_seed(seed + 1)
    data = ground.ground.data(len(samples), generator).x0
    # Distances grow with the root of the number of coordinates.
    scale = ground.ground.data_std * math.sqrt(samples[0].numel())
    bandwidths = [0.25 * scale, scale]
    if ground.name == "clouds":
        return {"chamfer": _nearest_chamfer(samples[:100], data[:200])}
    if are_directions:
        data, teacher = (x / x.norm(dim=1, keepdim=True) for x in (data, teacher))
    few = slice(0, MMD_SAMPLES)
    found = {
        "sliced_wasserstein": float(sliced_wasserstein(samples, data, generator)),
        "mmd": float(mmd_squared(samples[few], data[few], bandwidths)),
        "to_teacher": float(sliced_wasserstein(samples, teacher, generator)),
    }
    if are_directions:
        return found
    if ground.mixture is not None:
        weights = ground.mixture.weights / ground.mixture.weights.sum()
        error = (mode_weights(samples, ground.mixture) - weights).abs().max()
        found["mode_weight_error"] = float(error)
    elif ground.classifier is not None:
        found["frechet"] = _frechet(ground, samples, digits()[0].images)
    return found


def _nearest_chamfer(samples: Tensor, data: Tensor) -> float:
    nearest = [chamfer_distance(one.expand(len(data), *one.shape), data).amin() for one in samples]
    return float(torch.stack(nearest).mean())


def digits_floor(ground: NamedGround) -> float:
    """The Frechet distance of real digits that nothing was trained on: the test split's."""
    train, test = digits()
    return _frechet(ground, test.images, train.images)


def _frechet(ground: NamedGround, samples: Tensor, real: Tensor) -> float:
    assert ground.classifier is not None
    with torch.no_grad():
        ours, theirs = ground.classifier(samples)[1], ground.classifier(real)[1]
    return float(frechet_distance(ours, theirs))
