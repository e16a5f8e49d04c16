"""The polynomials that DEIS and ERA share: what they pass through, and what they integrate."""

from __future__ import annotations

import pytest
import torch

from core.schedule import FlowSchedule, VPSchedule
from core.solvers.exponential import half_log_snr
from core.solvers.interpolation import Variable, check_variable, integrate_eps, lagrange, place


def test_bases_are_one_at_their_knot_and_reproduce_polynomials() -> None:
    knots = [torch.tensor([k, k + 0.1], dtype=torch.float64) for k in (0.9, 0.5, 0.2, 0.05)]
    for j, knot in enumerate(knots):
        found = torch.stack(lagrange(knots, knot))
        wanted = torch.zeros(4, 2, dtype=torch.float64)
        wanted[j] = 1
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    where = torch.tensor([[-0.3, 2.0], [0.4, 0.4]], dtype=torch.float64)
    bases = lagrange(knots, where)
    for degree in range(4):
        value = sum(basis * knot**degree for basis, knot in zip(bases, knots, strict=True))
        torch.testing.assert_close(value, where**degree, rtol=1e-11, atol=1e-11)


def test_places_are_the_variables_named() -> None:
    schedule = VPSchedule()
    t = torch.tensor([0.1, 0.6], dtype=torch.float64)
    half = half_log_snr(schedule, t)
    torch.testing.assert_close(place(schedule, half, "t"), t)
    torch.testing.assert_close(place(schedule, half, "r"), schedule.sigma(t) / schedule.alpha(t))
    assert place(schedule, half, "log_snr") is half
    with pytest.raises(ValueError, match="ERA's variable"):
        check_variable("ERA", "rho")  # pyright: ignore[reportArgumentType]  # that is the test


@pytest.mark.parametrize("variable", ["r", "log_snr"])
def test_integrals_are_those_of_the_closed_forms(variable: Variable) -> None:
    """dy/dr = r^2, and dy/dr = log r whose integral is r log r - r, in y = x / alpha."""
    schedule = FlowSchedule()
    t, s = (torch.tensor([value], dtype=torch.float64) for value in (0.6, 0.35))
    knots = [
        place(schedule, half_log_snr(schedule, torch.tensor([each], dtype=torch.float64)), variable)
        for each in (0.8, 0.7, 0.6)
    ]
    values = [(knot**2 if variable == "r" else -knot)[:, None] for knot in knots]
    x_s = integrate_eps(
        schedule, torch.full((1, 1), 0.3, dtype=torch.float64), t, s, knots, values, variable
    )
    r_t, r_s = t / (1 - t), s / (1 - s)

    def primitive(r: torch.Tensor) -> torch.Tensor:
        return r**3 / 3 if variable == "r" else r * torch.log(r) - r

    exact = (1 - s) * (0.3 / (1 - t) + primitive(r_s) - primitive(r_t))
    torch.testing.assert_close(x_s[0], exact, rtol=1e-12, atol=1e-12)
