"""Gaussian mixtures: data whose diffusion is known in closed form, the oracle of every test.

If x0 comes from a mixture, x_t = alpha x0 + sigma eps comes from a mixture too, and its score,
the posterior of x0 and the posterior of the component are all exact. See core.exact_flow for
the exact map of the probability-flow ODE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from core.denoiser import Conditioning
from core.prediction import Prediction
from core.schedule import NoiseSchedule

__all__ = ["GaussianMixture", "MixtureDenoiser", "NoisedMixture"]


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianMixture:
    """A mixture of K Gaussians in D dimensions; computes in the dtype it is given.

    weights      [K], positive; normalised on reading
    means        [K, D]
    covariances  [K, D] for diagonal ones, or [K, D, D]; may be 0, a point mass
    labels       [K] long >= 0, the class of each component; each is its own class by default
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    variances: Tensor = field(init=False, repr=False)
    """[K, D], the covariances' eigenvalues."""
    axes: Tensor | None = field(init=False, repr=False)
    """[K, D, D], their eigenvectors as columns; None where the covariances are diagonal."""

    def __post_init__(self) -> None:
        if self.means.ndim != 2:
            raise ValueError(f"means must have shape [K, D], got {list(self.means.shape)}.")
        n_components, dimension = self.means.shape
        if self.weights.shape != (n_components,) or not bool((self.weights > 0).all()):
            raise ValueError(f"weights must be {n_components} positive numbers, one a component.")
        if self.labels.numel() == 0:
            labels = torch.arange(n_components, device=self.means.device)
            object.__setattr__(self, "labels", labels)
        if self.labels.shape != (n_components,) or bool((self.labels < 0).any()):
            raise ValueError(f"labels must be {n_components} integers >= 0, one a component.")
        if self.covariances.shape == (n_components, dimension):
            variances, axes = self.covariances, None
        elif self.covariances.shape == (n_components, dimension, dimension):
            variances, axes = torch.linalg.eigh(self.covariances)
            # A singular covariance's zero comes out of eigh as plus or minus a rounding error.
            rounding = torch.finfo(variances.dtype).eps * dimension * variances.amax(1, True).abs()
            variances = torch.where(variances.abs() <= rounding, 0.0, variances)
        else:
            raise ValueError(
                f"covariances must have shape [{n_components}, {dimension}] or "
                f"[{n_components}, {dimension}, {dimension}], got {list(self.covariances.shape)}."
            )
        if not bool((variances >= 0).all()):
            raise ValueError("covariances must be positive semidefinite.")
        object.__setattr__(self, "variances", variances)
        object.__setattr__(self, "axes", axes)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> GaussianMixture:
        return replace(
            self,
            weights=self.weights.to(device=device, dtype=dtype),
            means=self.means.to(device=device, dtype=dtype),
            covariances=self.covariances.to(device=device, dtype=dtype),
            labels=self.labels.to(device=device),
        )

    def noised(self, alpha: Tensor, sigma: Tensor, labels: Tensor | None = None) -> NoisedMixture:
        """The distribution of alpha x0 + sigma eps, for alpha and sigma [B].

        `labels` [B] keeps the components of one class in each sample; -1 keeps all. Raises
        ValueError for a class that no component has, and where there is no density: sigma = 0
        with a point mass, or alpha = sigma = 0.
        """
        return NoisedMixture(
            mixture=self,
            log_weights=self._log_weights(len(alpha), labels),
            alpha=alpha.to(self.means.dtype),
            sigma=sigma.to(self.means.dtype),
        )

    def sample(
        self, n: int, generator: torch.Generator, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """n draws of x0 [n, D] and of the components [n] they came from.

        `labels` [n] asks for a class in each draw; -1 is any.
        """
        weights = self._log_weights(n, labels).exp().to(generator.device)
        component = torch.multinomial(weights, 1, replacement=True, generator=generator)[:, 0]
        noise = torch.randn(
            (n, self.means.shape[1]),
            generator=generator,
            device=generator.device,
            dtype=self.means.dtype,
        )
        component = component.to(self.means.device)
        spread = self.variances[component].sqrt() * noise.to(self.means.device)
        if self.axes is not None:
            spread = torch.einsum("nij,nj->ni", self.axes[component], spread)
        return self.means[component] + spread, component

    def _log_weights(self, n: int, labels: Tensor | None) -> Tensor:
        """The normalised log-weights of n samples [n, K], given their labels."""
        log_weights = torch.log(self.weights).expand(n, -1)
        if labels is not None:
            kept = (labels[:, None] == self.labels) | (labels[:, None] == -1)
            if not bool(kept.any(1).all()):
                missing = sorted(set(labels[~kept.any(1)].tolist()))
                raise ValueError(
                    f"No component has the label {missing[0]}; there are "
                    f"{sorted(set(self.labels.tolist()))}, and -1 for all."
                )
            log_weights = torch.where(kept, log_weights, -math.inf)
        return torch.log_softmax(log_weights, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisedMixture:
    """x_t = alpha x0 + sigma eps for B pairs (alpha, sigma); made by GaussianMixture.noised.

    Everything follows from component k's marginal N(alpha m_k, alpha^2 C_k + sigma^2 I), in the
    eigenbasis U_k of C_k.
    """

    mixture: GaussianMixture
    log_weights: Tensor
    """[B, K], normalised; minus infinity for components that are left out."""
    alpha: Tensor
    sigma: Tensor
    variances: Tensor = field(init=False, repr=False)
    """[B, K, D], the marginals' eigenvalues."""

    def __post_init__(self) -> None:
        of_data = self.alpha.square()[:, None, None] * self.mixture.variances
        variances = of_data + self.sigma.square()[:, None, None]
        if not bool((variances > 0).all()):
            raise ValueError(
                "A point mass has no density where sigma is 0. Choose t > 0, or give every "
                "component some variance."
            )
        object.__setattr__(self, "variances", variances)

    def log_density(self, x: Tensor) -> Tensor:
        """log p_t(x) [B], for x [B, D]."""
        return torch.logsumexp(self._log_joint(x), 1)

    def log_component_posterior(self, x: Tensor) -> Tensor:
        """log p(k | x_t = x) [B, K]."""
        return torch.log_softmax(self._log_joint(x), 1)

    def class_posterior(self, x: Tensor) -> Tensor:
        """p(label | x_t = x) [B, C], for the labels 0 .. C-1."""
        one_hot = torch.nn.functional.one_hot(self.mixture.labels).to(x.dtype)
        return self.log_component_posterior(x).exp() @ one_hot

    def score(self, x: Tensor) -> Tensor:
        """grad log p_t(x) [B, D]."""
        return self._mean_over_components(x, self._from_axes(-self._residual(x) / self.variances))

    def x0_mean(self, x: Tensor) -> Tensor:
        """E[x0 | x_t = x] [B, D]."""
        return self._mean_over_components(x, self._component_x0_mean(x))

    def x0_covariance(self, x: Tensor) -> Tensor:
        """Cov[x0 | x_t = x] [B, D, D]: within the components, and of their means."""
        sigma2 = self.sigma.square()[:, None, None]
        within = torch.diag_embed(sigma2 * self.mixture.variances / self.variances)
        if self.mixture.axes is not None:
            axes = self.mixture.axes
            within = torch.einsum("kij,bkjl,kml->bkim", axes, within, axes)
        means = self._component_x0_mean(x)
        posterior = self.log_component_posterior(x).exp()
        centred = means - torch.einsum("bk,bkd->bd", posterior, means)[:, None]
        between = centred[..., :, None] * centred[..., None, :]
        return torch.einsum("bk,bkij->bij", posterior, within + between)

    def v_prediction(self, x: Tensor) -> Tensor:
        """E[alpha eps - sigma x0 | x_t = x] [B, D], exact at both ends of any schedule."""
        alpha, sigma = self.alpha[:, None, None], self.sigma[:, None, None]
        # alpha E[eps | k] - sigma (E[x0 | k] - m_k), summed before it can cancel.
        spread = alpha * sigma * (1 - self.mixture.variances) / self.variances
        around_mean = self._from_axes(spread * self._residual(x))
        return self._mean_over_components(x, around_mean - sigma * self.mixture.means)

    def _component_x0_mean(self, x: Tensor) -> Tensor:
        """E[x0 | x_t = x, k] [B, K, D]."""
        gain = self.alpha[:, None, None] * self.mixture.variances / self.variances
        return self.mixture.means + self._from_axes(gain * self._residual(x))

    def _log_joint(self, x: Tensor) -> Tensor:
        """log of weight times density [B, K]."""
        squared = self._residual(x).square() / self.variances
        log_normaliser = torch.log(2 * math.pi * self.variances)
        return self.log_weights - (squared + log_normaliser).sum(2) / 2

    def _residual(self, x: Tensor) -> Tensor:
        """x - alpha m_k in the eigenbasis of each component [B, K, D]."""
        residual = x[:, None] - self.alpha[:, None, None] * self.mixture.means
        if self.mixture.axes is None:
            return residual
        return torch.einsum("kij,bki->bkj", self.mixture.axes, residual)

    def _from_axes(self, vectors: Tensor) -> Tensor:
        if self.mixture.axes is None:
            return vectors
        return torch.einsum("kij,bkj->bki", self.mixture.axes, vectors)

    def _mean_over_components(self, x: Tensor, values: Tensor) -> Tensor:
        return torch.einsum("bk,bkd->bd", self.log_component_posterior(x).exp(), values)


@dataclass(frozen=True, eq=False)
class MixtureDenoiser:
    """The perfect denoiser of a mixture's data, on any schedule; a Denoiser.

    x_t is [B, D]; cond.labels picks the class of each sample. Computes in the mixture's dtype,
    answers in x_t's.
    """

    mixture: GaussianMixture
    schedule: NoiseSchedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Prediction:
        exact_t = t.to(self.mixture.means.dtype)
        noised = self.mixture.noised(
            self.schedule.alpha(exact_t),
            self.schedule.sigma(exact_t),
            None if cond is None else cond.labels,
        )
        # Of all parametrisations only this one determines the others at every t of any schedule.
        v_prediction = noised.v_prediction(x_t.to(self.mixture.means.dtype))
        return Prediction.from_v_prediction(v_prediction.to(x_t.dtype), x_t, t, self.schedule)
