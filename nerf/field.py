"""The radiance field: density and albedo of points, from one hash grid and one small MLP."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from nerf.hash_grid import HashGrid, HashGridConfig
from nerf.hash_grid.module import Backend

__all__ = ["FieldConfig", "RadianceField"]


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """Shape of the field and of the ball it starts as.

    hash_grid: the encoding.
    hidden_dim: width of the one hidden layer.
    half_extent: the field lives in the ball of this radius, the encoding in the cube about it;
        beyond the ball the density is zero.
    density_scale: the density is density_scale * softplus(logit).
    blob_logit, blob_radius, outside_logit: before any training the logit is
        outside_logit + (blob_logit - outside_logit) exp(-r^2 / (2 blob_radius^2)),
        a ball at the centre. `outside_logit` sets how thin the haze is from which matter may
        still grow far from the centre: gradients there are scaled by sigmoid(outside_logit).

    A surface as sharp as a pixel needs a density near 100. With a scale of 1 the network must
    reach a logit of 100 for it: 120 photometric steps on a small figure gave 22.6 dB where a scale
    of 30 gave 25.6, one of 10 25.2, and exp(logit) 25.2 from the same haze. The exponential has
    no bound at the learning rates that a short run needs; the scaled softplus grows linearly.

    A ball and not the cube: a cube that fills the view can pass for a plain background with the
    object painted on it, and distillation found that way out; a ball leaves the corners free.
    """

    hash_grid: HashGridConfig = field(default_factory=HashGridConfig)
    hidden_dim: int = 32
    half_extent: float = 1.0
    density_scale: float = 30.0
    blob_logit: float = 1.0
    blob_radius: float = 0.3
    outside_logit: float = -6.0
    color_channels: int = 3
    bounded_colors: bool = True

    def __post_init__(self) -> None:
        if self.hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1, got {self.hidden_dim}")
        if self.color_channels < 1:
            raise ValueError(f"color_channels must be at least 1, got {self.color_channels}")
        for name in ("half_extent", "density_scale", "blob_radius"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.blob_logit <= self.outside_logit:
            raise ValueError(
                f"blob_logit ({self.blob_logit}) must exceed outside_logit "
                f"({self.outside_logit}), or there is no ball to start from"
            )


class RadianceField(nn.Module):
    """Density [N] (per world unit, >= 0) and albedo [N, C] of world points [N, 3].

    The albedo is RGB in [0, 1] unless the config says otherwise.

    Colour does not depend on the direction of view, so that what is optimised is what a textured
    mesh can hold. Points outside the ball have density zero and pass it no gradient.
    """

    def __init__(
        self,
        config: FieldConfig,
        *,
        backend: Backend = "auto",
        generator: torch.Generator | None = None,
        table_dtype: torch.dtype = torch.float32,
    ) -> None:
        """generator draws all initial parameters; without one, a fixed seed of 0 does.

        table_dtype: what the hash grid is read as, float32 or float16; it is trained in float32.
        """
        super().__init__()
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        self.config = config
        self.encoding = HashGrid(config.hash_grid, backend, generator, table_dtype)
        self.hidden = nn.Linear(self.encoding.out_dim, config.hidden_dim)
        # The density's logit, then the colour's.
        self.head = nn.Linear(config.hidden_dim, 1 + config.color_channels)
        with torch.no_grad():
            for layer in (self.hidden, self.head):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()

    @property
    def aabb(self) -> tuple[float, float, float, float, float, float]:
        """The ball's cube as (x_min, y_min, z_min, x_max, y_max, z_max)."""
        e = self.config.half_extent
        return (-e, -e, -e, e, e, e)

    def density(self, points: Tensor) -> Tensor:
        """Density alone, [N]: the colour rows of the last layer are not computed."""
        logit = functional.linear(self._features(points), self.head.weight[:1], self.head.bias[:1])
        return self._density_of(logit[:, 0], points)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(density [N], albedo [N, C])."""
        out = self.head(self._features(points))
        return self._density_of(out[:, 0], points), self._color_of(out[:, 1:])

    def with_normals(
        self, points: Tensor, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(density [N], albedo [N, C], unit outward normals [N, 3]) with one encoding.

        The normal is the descent direction of the density logit, which is that of the density
        itself without its vanishing scale in empty space. With create_graph the normals carry
        gradients to the parameters; without it they are constants. Works under no_grad too.
        """
        keep = torch.is_grad_enabled()
        at = points.detach()
        with torch.enable_grad():
            encoded, out = self._with_encoding(at, self.head.weight, self.head.bias)
            slope = self._slope(at, encoded, out[:, 0], keep=keep, create_graph=create_graph)
            normals = -functional.normalize(slope, dim=-1, eps=1e-12)
            density = self._density_of(out[:, 0], at)
            albedo = self._color_of(out[:, 1:])
        if not create_graph:
            normals = normals.detach()
        if not keep:
            density, albedo = density.detach(), albedo.detach()
        return density, albedo, normals

    def normals(self, points: Tensor, *, create_graph: bool = False) -> Tensor:
        """Unit outward normals [N, 3]; see with_normals."""
        at = points.detach()
        with torch.enable_grad():
            encoded, out = self._with_encoding(at, self.head.weight[:1], self.head.bias[:1])
            slope = self._slope(at, encoded, out[:, 0], keep=False, create_graph=create_graph)
            return -functional.normalize(slope, dim=-1, eps=1e-12)

    def _with_encoding(self, points: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The encoding [N, out_dim], a node of the graph, and what the last layer makes of it."""
        encoded = self.encoding(self._unit(points))
        if not encoded.requires_grad:  # the table is frozen
            encoded.requires_grad_()
        return encoded, functional.linear(torch.relu(self.hidden(encoded)), weight, bias)

    def _slope(
        self, points: Tensor, encoded: Tensor, logit: Tensor, *, keep: bool, create_graph: bool
    ) -> Tensor:
        """The density logit's gradient by the points, [N, 3], the starting ball's included.

        The chain rule by hand, as the points are constants: through the points' own graph, the
        backward pass of a loss on normals would also work out what nobody asks for. With `keep`
        the graph of `logit` stays for another pass.
        """
        (grad,) = torch.autograd.grad(
            logit.sum(), encoded, create_graph=create_graph, retain_graph=keep or create_graph
        )
        with torch.set_grad_enabled(create_graph):
            slope = self.encoding.point_gradient(self._unit(points), grad)
        e, c = self.config.half_extent, self.config
        # Beyond the cube the encoding is that of the nearest point on its side.
        slope = slope * ((points.abs() <= e) * (0.5 / e))
        return slope - self._bump(points)[:, None] * points / c.blob_radius**2

    def _unit(self, points: Tensor) -> Tensor:
        """World points in the coordinates of the encoding, [N, 3] in [0, 1]."""
        e = self.config.half_extent
        return ((points + e) * (0.5 / e)).clamp(0, 1)

    def _features(self, points: Tensor) -> Tensor:
        """Activations of the hidden layer, [N, hidden_dim]."""
        return torch.relu(self.hidden(self.encoding(self._unit(points))))

    def _blob(self, points: Tensor) -> Tensor:
        """The starting density logit, [N] (the form of DreamFusion, arXiv 2209.14988, A.2)."""
        return self.config.outside_logit + self._bump(points)

    def _bump(self, points: Tensor) -> Tensor:
        """The part of the starting density logit that depends on the point, [N]."""
        c = self.config
        squared = (points * points).sum(dim=-1)
        return (c.blob_logit - c.outside_logit) * torch.exp(squared * (-0.5 / c.blob_radius**2))

    def _color_of(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.config.bounded_colors else logits

    def _density_of(self, logit: Tensor, points: Tensor) -> Tensor:
        inside = points.detach().square().sum(dim=-1) <= self.config.half_extent**2
        scale = self.config.density_scale
        return functional.softplus(logit + self._blob(points)) * (scale * inside)
