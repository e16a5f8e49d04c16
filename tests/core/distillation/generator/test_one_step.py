"""What all one-step generators share: latents, draws and the fake score's start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.distillation.generator.diff_instruct import DiffInstruct
from core.distillation.generator.fake_score import denoiser_from_teacher
from core.distillation.generator.sds_generator import SDSGenerator
from core.distillation.method import Ground
from core.distillation.mixture_ground import mixture_ground, ring_mixture
from core.distillation.students import NetworkDenoiser
from core.frozen import freeze, parameter_sha256
from core.mixture import GaussianMixture, MixtureDenoiser
from core.prediction import Parametrisation
from core.schedule import VESchedule, diffuse, noise_like


@pytest.mark.parametrize(("latent", "width"), [(None, 2), (1, 1), (5, 5)])
def test_a_latent_may_have_another_dimension(
    latent: int | None, width: int, generator: torch.Generator
) -> None:
    method = SDSGenerator(mixture_ground(ring_mixture()), latent_dimension=latent, steps=1)
    z = method.noise(7, generator)
    assert z.shape == (7, width)
    states = method.sample(z, 1, None, generator)
    assert torch.equal(states[0], z)
    assert states[-1].shape == (7, 2)
    with pytest.raises(ValueError, match="nfe 1"):
        method.sample(z, 2, None, generator)


def test_the_network_reads_a_latent_of_unit_spread(generator: torch.Generator) -> None:
    """The prior of an exploding schedule is 80 wide; the network must not see that."""
    ground = mixture_ground(ring_mixture(), VESchedule())
    method = SDSGenerator(ground, steps=1)
    z = method.noise(4000, generator)
    assert 70 < float(z.std()) < 90
    seen = []
    method.student.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    method.generate(z)
    assert abs(float(seen[0].std()) - 1) < 0.05


def test_conditionings_reach_the_student(generator: torch.Generator) -> None:
    ground = mixture_ground(ring_mixture(), with_labels=True)
    made = SDSGenerator(ground, steps=1, batch=50).draw(generator)
    assert made.cond is not None
    assert made.cond.labels is not None
    assert len(made.cond.labels.unique()) > 1
    assert made.x0.requires_grad


def test_a_latent_needs_a_dimension(ground: Ground) -> None:
    with pytest.raises(ValueError, match="latent_dimension"):
        SDSGenerator(ground, latent_dimension=0, steps=1)


def test_the_fake_score_starts_as_the_teacher_where_it_is_a_network(ground: Ground) -> None:
    network = ground.make_network(times=1)
    freeze(network)
    before = parameter_sha256(network)
    teacher = NetworkDenoiser(network, ground.schedule, Parametrisation.VELOCITY)
    networked = Ground(
        teacher=teacher,
        shape=ground.shape,
        data=ground.data,
        make_network=ground.make_network,
        data_std=ground.data_std,
    )
    copied, denoiser = denoiser_from_teacher(networked)
    assert denoiser.parametrisation is Parametrisation.VELOCITY
    assert parameter_sha256(copied) == before
    assert all(parameter.requires_grad for parameter in copied.parameters())
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert parameter_sha256(network) == before
    # A closed form has nothing to copy.
    fresh, _ = denoiser_from_teacher(ground)
    assert parameter_sha256(fresh) != before


def test_the_fake_scores_loss_is_least_at_the_generators_own_denoiser(
    ground: Ground, line_generator: nn.Module
) -> None:
    """Denoising by another, the teacher's say, costs more by their mean squared difference."""
    method = DiffInstruct(ground, steps=1, batch=200_000)
    method.student = line_generator.float()
    law = GaussianMixture(
        weights=torch.ones(1), means=torch.tensor([[0.3]]), covariances=torch.tensor([[0.36]])
    )
    exact = MixtureDenoiser(law, ground.schedule)
    losses = {}
    for denoiser in (exact, ground.teacher):
        method.fake = denoiser
        losses[denoiser] = method.fake_loss(torch.Generator().manual_seed(3)).item()
    generator = torch.Generator().manual_seed(4)
    x = law.sample(200_000, generator)[0]
    t = ground.times(len(x), generator)
    x_t = diffuse(ground.schedule, x, noise_like(x, generator), t)
    gap = exact(x_t, t).v_prediction - ground.teacher(x_t, t).v_prediction
    excess = float(gap.square().mean())
    assert losses[ground.teacher] - losses[exact] == pytest.approx(excess, rel=0.1)
    assert excess > 0.05
