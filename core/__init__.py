"""Diffusion: schedules, predictions, denoisers, solvers, distillation.

Nothing here knows of cameras, meshes or interfaces. Import from the modules themselves
(`from core.schedule import FlowSchedule`); each lists its public names in `__all__`.

Conventions, for every module: x_t = alpha(t) x0 + sigma(t) eps with t in [0, 1], t = 0 the data
and t = 1 the noise; t has shape [B] and x_t shape [B, ...]; images are [B, 3, H, W] in [-1, 1].
"""
