"""Every generator method on images with classes, from a teacher that is a network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.denoiser import Conditioning
from core.distillation.generator.adversarial import ADD
from core.distillation.generator.conditional_kl import ConditionalKL
from core.distillation.generator.diff_instruct import DiffInstruct
from core.distillation.generator.dmd import DMD
from core.distillation.generator.dmd2 import DMD2
from core.distillation.generator.ladd import LADD
from core.distillation.generator.particle_vsd import ParticleVSD
from core.distillation.generator.sds_generator import SDSGenerator
from core.distillation.generator.sid import SiD
from core.distillation.generator.ufogen import UFOGen
from core.distillation.method import Batch, Distillation, Family, Ground, StudentKind
from core.distillation.students import NetworkDenoiser
from core.frozen import freeze, parameter_sha256
from core.networks import MLP
from core.schedule import CosineSchedule
from core.training import train

METHODS: list[type[Distillation]] = [
    ADD,
    ConditionalKL,
    DMD,
    DMD2,
    DiffInstruct,
    LADD,
    ParticleVSD,
    SDSGenerator,
    SiD,
    UFOGen,
]
SHAPE = (1, 3, 4)


class ImageNetwork(nn.Module):
    """A small network from images, or flat latents, to images of three classes."""

    def __init__(self, times: int, in_dimension: int | None) -> None:
        super().__init__()
        self.flat = MLP(in_dimension or 12, out_dimension=12, times=times, n_labels=3, width=16)

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        s: Tensor | None = None,
        cond: Conditioning | None = None,
    ) -> Tensor:
        return self.flat(x.flatten(1), t, s, cond).view(-1, *SHAPE)


def make_network(
    *, times: int = 1, reads_guidance_scale: bool = False, in_dimension: int | None = None
) -> nn.Module:
    assert not reads_guidance_scale
    return ImageNetwork(times, in_dimension)


def data(n: int, generator: torch.Generator) -> Batch:
    labels = torch.randint(3, (n,), generator=generator)
    x0 = labels.float()[:, None, None, None] + torch.randn(n, *SHAPE, generator=generator)
    return Batch(x0=x0, cond=Conditioning(labels=labels))


@pytest.mark.parametrize("method_class", METHODS, ids=lambda method: method.card.name)
def test_it_trains_and_samples_images(method_class: type[Distillation]) -> None:
    torch.manual_seed(0)
    network = ImageNetwork(1, None)
    freeze(network)
    before = parameter_sha256(network)
    ground = Ground(
        teacher=NetworkDenoiser(network, CosineSchedule()),
        shape=SHAPE,
        data=data,
        make_network=make_network,
        data_std=1.3,
    )
    method = method_class(ground, batch=8, steps=2)
    starts = {name: parameter_sha256(module) for name, module in method.modules().items()}
    history = train(method)
    assert parameter_sha256(network) == before
    for name, module in method.modules().items():
        assert parameter_sha256(module) != starts[name], f"{name} did not train"
    assert set(history.losses) == set(method.stages()[0].players)
    trained = [player.module for player in method.stages()[0].players.values()]
    assert all(any(one is module for one in trained) for module in method.modules().values())

    generator = torch.Generator().manual_seed(1)
    cond = None if method_class is ParticleVSD else data(5, generator).cond
    for nfe in method.card.nfe:
        with torch.no_grad():
            states = method.sample(method.noise(5, generator), nfe, cond, generator)
        assert states[-1].shape == (5, *SHAPE)
        assert len(states) == nfe + 1
        assert bool(torch.isfinite(states[-1]).all())


def test_the_cards_are_distinct() -> None:
    cards = [method.card for method in METHODS]
    for values in ([card.name for card in cards], [card.equation for card in cards]):
        assert len(set(values)) == len(METHODS)
    for card in cards:
        assert card.family is Family.GENERATOR
        assert card.student is StudentKind.GENERATOR
        assert card.needs
