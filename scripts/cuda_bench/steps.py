"""Of scripts/bench_cuda.py: whole steps with teachers of several sizes, and a whole run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.teachers.graphs import graphed
from cuda_bench.fields import Way, view_rays, ways
from cuda_bench.measure import Row, Setting, timed
from cuda_bench.networks import Size, UNet, make_unet, make_vae
from nerf.field import RadianceField
from nerf.rendering import render
from sds3d.optimize_config import OptimizeConfig

__all__ = ["bench_512", "bench_run", "bench_toybox", "bench_unet"]

SIZES: tuple[Size, ...] = ("sd21", "sdxl")


def bench_toybox(setting: Setting) -> Iterator[Row]:
    """A step of the `fast` preset at mid-run; by graphs too, where there are any."""
    from sds3d.cuda_graphs import asked_by_graphs
    from sds3d.events import Event, Warning
    from sds3d.optimize import Optimization, StepClock
    from sds3d.presets import generate_config
    from sds3d.teachers import load_teacher

    device = setting.device.type
    teacher = load_teacher("toybox", "cuda" if device == "cuda" else "cpu")
    for way in ways(setting.device):
        if not way.trains:
            continue
        config = generate_config("fast", prompt="a red mushroom", device=device)
        options = dataclasses.replace(
            _few_steps(config.optimize) if setting.small else config.optimize,
            encoding=way.backend,
            table_dtype=_name(way.table),
        )
        loop = Optimization(dataclasses.replace(config, optimize=options), teacher)
        while loop.step < options.steps // 2:
            loop.advance(StepClock())
        rays = loop.advance(StepClock()).rays

        def run(loop: Optimization = loop) -> object:
            return loop.advance(StepClock())

        for graphs in (False, True):
            events: list[Event] = []
            asked = dataclasses.replace(options, cuda_graphs=graphs)
            with asked_by_graphs(asked, teacher, events.append):
                what = f"step, {way.name}" + (", teacher by graphs" if graphs else "")
                few = dataclasses.replace(setting, repeats=min(setting.repeats, 100))
                row = timed(few, run, part="toybox", what=what, points=rays, order="rays")
            refused = [event.text for event in events if isinstance(event, Warning)]
            yield dataclasses.replace(row, ms=None, failed=refused[0]) if refused else row


def _few_steps(options: OptimizeConfig) -> OptimizeConfig:
    """As few and small as steps can be."""
    return dataclasses.replace(options, steps=4, resolutions=(8,), resolution_milestones=())


def _name(dtype: torch.dtype) -> Any:
    return str(dtype).removeprefix("torch.")


class LatentStep:
    """Render latents, ask the teacher, go back, and let Adam move the field."""

    def __init__(self, setting: Setting, way: Way, unet: UNet) -> None:
        self.field = way.field(setting, color_channels=4, bounded_colors=False)
        fused = setting.device.type == "cuda"
        self.adam = torch.optim.Adam(self.field.parameters(), lr=1e-2, fused=fused)
        self.rays = view_rays(setting.latent_side, setting.device)
        self.config, self.ask = way.render_config, unet.ask

    def __call__(self) -> object:
        self.adam.zero_grad()
        shown = render(self.field, None, *self.rays, self.config).images
        noise = torch.randn_like(shown)
        noisy = (0.5 * shown + 0.75**0.5 * noise).detach()
        shown.backward(0.01 * (self.ask(noisy) - noise))
        return self.adam.step()


@contextlib.contextmanager
def _by_graphs(unet: UNet, graphs: bool) -> Iterator[list[str]]:
    """The UNet plainly or by CUDA graphs, and why not, if it is not."""
    notes: list[str] = []
    if not graphs:
        yield notes
        return
    with graphed(unet.as_teacher, note=notes.append):
        yield notes


def bench_unet(
    setting: Setting, unet_of: Callable[[Size, Setting], UNet] = make_unet
) -> Iterator[Row]:
    """UNets on fields of latents: the teacher alone, and a step as a multiple of it."""
    side = setting.latent_side
    for size in SIZES:
        unet = unet_of(size, setting)
        latents = torch.randn(1, 4, side, side, device=setting.device)
        for graphs in (False, True):
            about: dict[str, Any] = {"part": "unet", "points": side**2}
            by = ", by graphs" if graphs else ""
            with _by_graphs(unet, graphs) as notes:
                ask = partial(unet.ask, latents)
                alone = timed(setting, ask, what=f"{size} alone{by}", **about)
                if notes:
                    yield dataclasses.replace(alone, ms=None, failed=notes[0])
                    continue
                yield alone
                for way in ways(setting.device):
                    if way.trains:
                        step = LatentStep(setting, way, unet)
                        what = f"{size} step, {way.name}{by}"
                        yield timed(setting, step, what=what, order="rays", **about).beside(alone)
        # Before the next one is made: both need not fit.
        del unet, ask


class ImageStep:
    """Render a picture, encode it, ask the teacher, go back through both, and move the field.

    Without a field the picture is a leaf: what the teacher and its autoencoder take alone. Without
    a teacher the gradient is given: what the field takes alone.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        way: Way | None,
        unet: UNet | None,
        encode: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.side, self.device = setting.image_side, setting.device
        self.field: RadianceField | None = None
        self.adam: torch.optim.Adam | None = None
        if way is not None:
            self.field = way.field(setting)
            fused = setting.device.type == "cuda"
            self.adam = torch.optim.Adam(self.field.parameters(), lr=1e-2, fused=fused)
            self.config = way.render_config
        self.rays = view_rays(self.side, self.device)
        self.unet, self.encode = unet, encode

    def __call__(self) -> object:
        if self.field is None:
            image = torch.zeros(1, 3, self.side, self.side, device=self.device, requires_grad=True)
        else:
            image = render(self.field, None, *self.rays, self.config).images
        if self.unet is None or self.encode is None:
            image.backward(torch.full_like(image, 1e-3))
        else:
            latents = self.encode(2 * image - 1)
            noise = torch.randn_like(latents)
            noisy = (0.5 * latents + 0.75**0.5 * noise).detach()
            latents.backward(0.01 * (self.unet.ask(noisy) - noise))
        if self.adam is None:
            return image.grad
        self.adam.step()
        return self.adam.zero_grad()


def bench_512(
    setting: Setting, unet_of: Callable[[Size, Setting], UNet] = make_unet
) -> Iterator[Row]:
    """Pictures of 512 pixels through an autoencoder: time, memory, and the field's share."""
    about: dict[str, Any] = {"part": "512", "points": setting.image_side**2}
    chosen = [way for way in ways(setting.device) if way.trains]
    for way in chosen:
        field_alone = ImageStep(setting, way=way, unet=None, encode=None)
        what = f"field alone, {way.name}"
        yield timed(setting, field_alone, what=what, order="rays", **about)
        del field_alone
    for size in SIZES:
        unet, encode = unet_of(size, setting), make_vae(size, setting)
        teacher_alone = ImageStep(setting, way=None, unet=unet, encode=encode)
        alone = timed(setting, teacher_alone, what=f"{size} and autoencoder alone", **about)
        yield alone
        for way in chosen:
            step = ImageStep(setting, way=way, unet=unet, encode=encode)
            what = f"{size} step, {way.name}"
            yield timed(setting, step, what=what, order="rays", **about).beside(alone)
            del step
        del unet, encode, teacher_alone


def bench_run(setting: Setting) -> Iterator[Row]:
    """A `fast` run from command to files, and its optimisation alone, each once."""
    from sds3d.generate import generate
    from sds3d.presets import generate_config

    for graphs in (False, True) if setting.device.type == "cuda" else (False,):
        config = generate_config(
            "fast", prompt="a red mushroom", seed=1, device=setting.device.type, out=setting.out
        )
        options = dataclasses.replace(config.optimize, cuda_graphs=graphs)
        if setting.small:
            options = _few_steps(options)
            small = dataclasses.replace(config.mesh, mesh_resolution=16, texture_size=0)
            config = dataclasses.replace(config, mesh=small)
        config = dataclasses.replace(config, optimize=options)
        seconds = generate(config, overwrite=True).result["seconds"]
        for what in ("total", "optimize"):
            name = f"fast, {what}" + (", teacher by graphs" if graphs else "")
            yield Row(part="run", what=name, points=0, ms=1e3 * seconds[what])
