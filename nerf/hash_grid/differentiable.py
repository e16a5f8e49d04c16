"""The hash grid as a twice differentiable function of torch, from three loops.

With y the encoding of points x by a table T, and g the gradient that arrives at y:

    first derivative    (g_x, g_T) of <g, y>:    g_T = scatter(x, g), g_x = point_grad(x, T, g)
    second derivative   of <v, g_x> + <u, g_T> for arriving v and u: <v, g_x> is linear in T and g,
        and equals <g, tangent interpolation of T along v>; <u, g_T> equals <g, encoding by u>.

So the second derivative needs only the tangent form of the same three loops. It is what lets a
loss on normals, -d density / dx, train the table. A third derivative is refused.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nerf.hash_grid.config import HashGridConfig

__all__ = ["Loops", "LoopsOver", "Stored", "as_it_is", "encode", "point_gradient"]

Stored = Callable[[Tensor], Tensor]
"""How the loops are given the table: as it is, or rounded to a dtype of their own. Gradients pass
as if it had not been rounded."""


def as_it_is(table: Tensor) -> Tensor:
    """The table itself."""
    return table


class Loops(Protocol):
    """The loops over a set of points, in the plain form or, with directions, in the tangent one."""

    def interpolate(self, table: Tensor) -> Tensor:
        """[N, out_dim]: the encoding by a table, or its derivative along the directions."""
        ...

    def scatter(self, grad: Tensor) -> Tensor:
        """[n_parameters]: the transpose of interpolate, applied to grad [N, out_dim]."""
        ...

    def point_grad(self, table: Tensor, grad: Tensor) -> Tensor:
        """[N, 3]: gradient to the points of <grad, encoding>; or its Hessian by the directions."""
        ...


class LoopsOver(Protocol):
    """Binds the loops to a grid, to points [N, 3] and, for the tangent form, directions [N, 3]."""

    def __call__(
        self, config: HashGridConfig, points: Tensor, directions: Tensor | None = None
    ) -> Loops: ...


class _Encode(Function):
    """points [N, 3], table [P] -> encoding [N, out_dim]."""

    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        table: Tensor,
        config: HashGridConfig,
        over: LoopsOver,
        stored: Stored,
    ) -> Tensor:
        ctx.save_for_backward(points, table)
        ctx.config, ctx.over, ctx.stored = config, over, stored
        return over(config, points).interpolate(stored(table))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        points, table = ctx.saved_tensors
        need_points, need_table, *_ = ctx.needs_input_grad
        grad_points, grad_table = _EncodeBackward.apply(
            *(points, table, grad_outputs[0], ctx.config, ctx.over, ctx.stored),
            *(need_points, need_table),
        )
        return grad_points, grad_table, None, None, None


class _EncodeBackward(Function):
    """points, table, gradient at the encoding -> gradients at points and table, where needed."""

    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        table: Tensor,
        grad: Tensor,
        config: HashGridConfig,
        over: LoopsOver,
        stored: Stored,
        need_points: bool,
        need_table: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(points, table, grad)
        ctx.config, ctx.over, ctx.stored = config, over, stored
        ctx.set_materialize_grads(False)
        loops = over(config, points)
        return (
            loops.point_grad(stored(table), grad) if need_points else None,
            loops.scatter(grad) if need_table else None,
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        return _second_backward(ctx, *grad_outputs)


# A third derivative would be silently wrong; with this, torch refuses it.
@once_differentiable
def _second_backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    points, table, grad = ctx.saved_tensors
    need_points, need_table, need_grad = ctx.needs_input_grad[:3]
    to_points: list[Tensor] = []
    to_table: list[Tensor] = []
    to_grad: list[Tensor] = []
    v, u = grad_outputs
    if v is not None:
        along = ctx.over(ctx.config, points, v)
        if need_points:
            to_points.append(along.point_grad(ctx.stored(table), grad))
        if need_table:
            to_table.append(along.scatter(grad))
        if need_grad:
            to_grad.append(along.interpolate(ctx.stored(table)))
    if u is not None:
        loops = ctx.over(ctx.config, points)
        if need_points:
            to_points.append(loops.point_grad(u, grad))
        if need_grad:
            to_grad.append(loops.interpolate(u))
    return _total(to_points), _total(to_table), _total(to_grad), *[None] * 5


def _total(terms: list[Tensor]) -> Tensor | None:
    return sum(terms[1:], start=terms[0]) if terms else None


def encode(
    points: Tensor,
    table: Tensor,
    config: HashGridConfig,
    over: LoopsOver,
    stored: Stored = as_it_is,
) -> Tensor:
    """The encoding of `reference.encode` by the given loops.

    points: [N, 3]; table: [config.n_parameters]. Returns [N, config.out_dim]. Where nothing asks
    for a gradient, nothing is kept for one.
    """
    encoded: Any = _Encode.apply(points, table, config, over, stored)
    return encoded


def point_gradient(
    points: Tensor,
    table: Tensor,
    grad: Tensor,
    config: HashGridConfig,
    over: LoopsOver,
    stored: Stored = as_it_is,
) -> Tensor:
    """Gradient at the points of <grad, encode(points)>: [N, 3], differentiable to table and grad.

    grad: [N, config.out_dim]. The points count as constants.
    """
    grad_points, _ = _EncodeBackward.apply(
        points.detach(), table, grad, config, over, stored, True, False
    )
    return grad_points
