"""The published recipes of other programs, as far as this one has the same options.

Each is taken from its program's own files and from what most of them agree on for a Stable
Diffusion teacher: a hash grid of 16 levels x 2 features, 2^19 entries, base 16, growth 1.4473 and
one hidden layer of 64; 64 px; guidance 100; times in [0.02, 0.98]; w(t) = sigma^2; 10,000 steps of
Adam at 1e-2 for the grid and 1e-3 for the MLP; elevations of -10 to 45 degrees.

None has been run with published weights here, so what they make is not measured. What they do not
take over: the authors' cameras (here always those that frame the object), their backgrounds, their
shading and the orientation loss that belongs to it, their penalties on opacity itself ("sparsity";
that on its entropy they have or lack as the authors do), and their negative prompts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .config import MeshConfig, PresetName
from .optimize_config import FieldOptions, OptimizeConfig, RefineOptions
from .preset import Preset

__all__ = ["RECIPES"]

_GRID = FieldOptions(
    n_levels=16,
    n_features=2,
    log2_table_size=19,
    base_resolution=16,
    finest_resolution=4096,
    hidden_dim=64,
)
"""(4096 / 16)^(1/15) = 1.4473."""

_MESH = MeshConfig(mesh_resolution=192, texture_size=2048)

_LATENTS_OF_512 = 4 * 64 * 64
"""The authors sum the loss over the latents, this program averages it: their weights of penalties
are divided by this."""

DREAMFUSION = Preset(
    teacher="sd15",
    optimize=OptimizeConfig(
        method="sds",
        steps=10_000,
        guidance_scale=100.0,
        loss_weighting="sigma2",
        timestep_policy="uniform",
        timestep_max=(0.98, 0.98),
        timestep_min=(0.02, 0.02),
        view_prompts="discrete",
        views_per_step=1,
        resolutions=(64,),
        resolution_milestones=(),
        elevation_range_deg=(-10.0, 45.0),
        encoding_learning_rate=1e-2,
        mlp_learning_rate=1e-3,
        final_learning_rate=1.0,
        occupancy_resolution=32,
        occupancy_interval=16,
        step_size=0.02,
        entropy_weight=0.0,
        field=_GRID,
    ),
    mesh=_MESH,
)
"""DreamFusion (arXiv 2209.14988) on Stable Diffusion, threestudio's dreamfusion-sd.yaml."""


def _like_dreamfusion(**changed: Any) -> OptimizeConfig:
    """DreamFusion's options with others in their place."""
    return dataclasses.replace(DREAMFUSION.optimize, **changed)


SJC = Preset(
    teacher="sd21",
    optimize=_like_dreamfusion(
        method="sjc",
        perturbations=1,
        latent=True,
        loss_weighting="eps",
        timestep_max=(0.97, 0.97),
        timestep_min=(0.01, 0.01),
    ),
    mesh=_MESH,
)
"""Score Jacobian Chaining (arXiv 2212.00774), threestudio's sjc.yaml: one perturbation of rendered
latents, times in [0.01, 0.97]. Its voxel grid is a hash grid here, with that one's rates."""

MAGIC3D = Preset(
    teacher="sd21",
    optimize=_like_dreamfusion(
        loss_weighting="eps",
        refine=RefineOptions(
            refine_steps=5000,
            refine_resolution=512,
            refine_views_per_step=1,
            refine_guidance_scale=100.0,
            refine_timesteps=(0.02, 0.5),
            refine_fovy_range_deg=(30.0, 45.0),
            tetrahedra_resolution=128,
            surface_learning_rate=0.01,
            texture_learning_rate=0.01,
            roughness_weight=10_000 / _LATENTS_OF_512,
        ),
    ),
    mesh=_MESH,
)
"""Magic3D (arXiv 2211.10440), threestudio's magic3d-coarse-sd.yaml and magic3d-refine-sd.yaml: a
field at 64 px with w = 1 for the noise, then its mesh at 512 px. The second file's w = sigma^2 is
the first's here."""

PROLIFICDREAMER = Preset(
    teacher="sd21",
    optimize=_like_dreamfusion(
        method="vsd",
        particles=1,
        lora_learning_rate=1e-4,
        steps=25_000,
        guidance_scale=7.5,
        timestep_policy="jump",
        timestep_end=5000 / 25_000,
        timestep_max=(0.98, 0.5),
        resolutions=(64, 512),
        resolution_milestones=(5000 / 25_000,),
    ),
    mesh=_MESH,
)
"""ProlificDreamer (arXiv 2305.16213), its first stage: from step 5000 of 25,000 on 512 px and times
up to 0.5. Its later stages, shape alone and texture alone, are not followed."""

LUCIDDREAMER = Preset(
    teacher="sd21",
    optimize=_like_dreamfusion(
        method="ism",
        steps=5000,
        guidance_scale=7.5,
        loss_weighting="x0",
        timestep_policy="linear",
        timestep_end=1500 / 5000,
        timestep_max=(0.98, 0.5),
        timestep_interval=50 / 1000,
        ode_steps=5,
        views_per_step=4,
        resolutions=(512,),
        elevation_range_deg=(-15.0, 45.0),
    ),
    mesh=_MESH,
)
"""LucidDreamer (arXiv 2311.11284), its own configs/hamburger.yaml: times up to 0.5 after 1500 of
5000 steps, an interval of 50 of 1000 (which begins at 100 there), four views at 512 px. Its
Gaussians are a field here, with DreamFusion's rates."""

SDI = Preset(
    teacher="sd21",
    optimize=_like_dreamfusion(
        method="sdi",
        guidance_scale=7.5,
        loss_weighting="x0",
        timestep_policy="linear",
        timestep_max=(0.98, 0.25),
        timestep_min=(0.98, 0.25),
        inversion_eta=0.3,
        ode_steps=10,
        view_prompts="interpolated",
        perp_neg=True,
        resolutions=(512,),
        # Its lambda_opaque is for an entropy in nats.
        entropy_weight=0.1 * math.log(2) / _LATENTS_OF_512,
    ),
    mesh=_MESH,
)
"""Score distillation via inversion (arXiv 2405.15891), threestudio's sdi.yaml: one time that falls
from 0.98 to 0.25, 10 steps of inversion, at 512 px."""

CSD = Preset(
    teacher="deepfloyd-if",
    optimize=_like_dreamfusion(
        method="csd",
        guidance_scale=1.0,
        loss_weighting="eps",
        timestep_policy="jump",
        timestep_end=5000 / 10_000,
        timestep_max=(0.98, 0.5),
        view_prompts="interpolated",
        perp_neg=True,
        encoding_learning_rate=1e-3,
        field=dataclasses.replace(_GRID, n_levels=12, finest_resolution=512),
        refine=RefineOptions(
            refine_teacher="sd21",
            refine_steps=10_000,
            refine_resolution=512,
            refine_perp_neg=False,
            refine_timesteps=(0.02, 0.5),
            tetrahedra_resolution=256,
            surface_learning_rate=1e-3,
            texture_learning_rate=1e-3,
            roughness_weight=1000 / _LATENTS_OF_512,
        ),
    ),
    mesh=_MESH,
)
"""Classifier score distillation (arXiv 2310.19415), its own csd-if.yaml and csd-sd-refine.yaml: a
field by DeepFloyd IF at 64 px, then its mesh by Stable Diffusion at 512 px, without Perp-Neg there.
The weights that its negative prompt takes on over time are not followed."""

MVDREAM = Preset(
    teacher="mvdream",
    obtain="convert its published file (python -m core.teachers.convert_mvdream --help) and name "
    "the folder that this makes",
    optimize=_like_dreamfusion(
        method="reconstruction",
        guidance_rescale=0.5,
        guidance_scale=50.0,
        loss_weighting="x0",
        timestep_policy="linear",
        timestep_end=8000 / 10_000,
        timestep_max=(0.98, 0.5),
        timestep_min=(0.98, 0.02),
        view_prompts="none",
        camera_guidance=False,
        views_per_step=4,
        resolutions=(64, 256),
        resolution_milestones=(0.5,),
        elevation_range_deg=(0.0, 30.0),
    ),
    mesh=_MESH,
)
"""MVDream (arXiv 2308.16512), its own mvdream-sd21.yaml: x0 reconstruction with guidance rescale,
64 px and from half-way on 256 px, four views (its later versions take eight at 64 px)."""

LATENT_NERF = Preset(
    teacher="sd15",
    optimize=_like_dreamfusion(latent=True, steps=5000, entropy_weight=5e-4 / _LATENTS_OF_512),
    mesh=_MESH,
)
"""Latent-NeRF (arXiv 2211.07600), its own train_config.py: latents of 64 x 64 are what is rendered,
5000 steps, 1e-3 for the MLP, 5e-4 for the entropy ("sparsity" there). Refining them as RGB is
--rgb-refinement."""

RECIPES: dict[PresetName, Preset] = {
    "dreamfusion": DREAMFUSION,
    "sjc": SJC,
    "magic3d": MAGIC3D,
    "prolificdreamer": PROLIFICDREAMER,
    "luciddreamer": LUCIDDREAMER,
    "sdi": SDI,
    "csd": CSD,
    "mvdream": MVDREAM,
    "latent-nerf": LATENT_NERF,
}
