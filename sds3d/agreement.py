"""How well the teacher agrees with the growing object: a figure that can be compared over a run.

The loss of score distillation cannot: its times, noise and cameras change in every step. Here they
are always the same, so that the figure falls as the object becomes what the teacher expects.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.distillation.score.sds import SDS
from core.schedule import noise_like
from core.teachers.teacher import encode_for

from .optimize_config import OptimizeConfig
from .resize import at_size
from .views import Views

if TYPE_CHECKING:
    from .optimize import Optimization

INTERVAL = 50
"""Steps between two measurements. One costs about as much as a step, so all of them cost a run of
a hundred steps and more about a fiftieth of its time (2.2 % of a fast run with the embedded teacher
on two cores); result.json says it under optimize_seconds.
"""

TIMES = (0.3, 0.5, 0.7, 0.5)
"""The fixed diffusion time of each view; views that are judged together share the middle one."""

ELEVATION_DEG = 20.0
BACKGROUND = 0.5


def is_due(step: int, options: OptimizeConfig) -> bool:
    """Whether the agreement is measured after this many steps: now and then, and at the end."""
    return is_kept(step, options) or step == options.total_steps


def is_kept(step: int, options: OptimizeConfig) -> bool:
    """Whether every run of these options measures after this step, however many steps follow."""
    return step % INTERVAL == 0 or step == options.steps


def measure_agreement(loop: Optimization) -> float | None:
    """The mean of |x - D(x_t)|² over four views, per value; less is better, None if not finite.

    x are the views as the teacher sees them (its latents, where it denoises these), x_t the same
    with noise, and D the teacher's prediction of the clean image, without guidance. Cameras, times
    and noise are the same in every call. Draws from no generator of the run and changes nothing in
    it. No more views are in memory at once than in a step.
    """
    particle = loop.particles[0]
    views = particle.around(len(TIMES), ELEVATION_DEG)
    generator = torch.Generator().manual_seed(0)
    times = torch.tensor(TIMES)
    if loop.supervision.views_per_object > 1:
        times = times.median().expand(len(TIMES))
    total, count = 0.0, 0
    for some in torch.arange(len(TIMES)).split(loop.options.views_per_step):
        part = Views(views.azimuth_deg[some], views.elevation_deg[some], views.distance[some])
        with torch.no_grad():
            images = render_views(loop, part, particle.finest_side, BACKGROUND)
            size = (loop.teacher_size, loop.teacher_size)
            x = encode_for(loop.teacher, 2.0 * at_size(images, size) - 1.0)
        t = times[some].to(x)
        # The x0 form of score distillation is x - D(x_t).
        residual = SDS(loop.teacher).gradient_at(
            x, t, noise_like(x, generator), loop.supervision.condition(part)
        )
        total += float(residual.square().sum())
        count += residual.numel()
    mean = total / count
    return mean if math.isfinite(mean) else None


def render_views(loop: Optimization, views: Views, side: int, background: float) -> Tensor:
    """[V, 3, side, side] in [0, 1]: the object from these sides, without jitter or gradient."""
    return loop.particles[0].pictures(views, side, background)
