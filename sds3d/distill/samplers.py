"""Every sampler of core/solvers, in words: for `sds3d methods` and the docs; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

TRAINING_FREE = "sampling without training"
TRAINED = "trained samplers"


@dataclass(frozen=True, kw_only=True)
class SamplerCard:
    """A sampler's line in lists and tables.

    made_by   where it is, as module.name
    order     the power of the step with which its error falls; of noisy ones, in distribution
    calls     network evaluations in a step
    """

    name: str
    title: str
    family: str
    made_by: str
    order: str
    calls: str
    reference: str
    idea: str
    equation: str


SAMPLERS = (
    SamplerCard(
        name="euler-maruyama",
        title="Euler-Maruyama",
        family=TRAINING_FREE,
        made_by="core.solvers.euler_maruyama.EulerMaruyama",
        order="1",
        calls="1",
        reference="arXiv 2011.13456",
        idea="Step along the reverse SDE with its drift and noise at the step's start.",
        equation="x_s = x + (f x - g^2 score)(s - t) + g sqrt(t - s) z",
    ),
    SamplerCard(
        name="ddpm",
        title="DDPM",
        family=TRAINING_FREE,
        made_by="core.solvers.ddpm.DDPM",
        order="1",
        calls="1",
        reference="arXiv 2006.11239",
        idea="Draw from the posterior of x_s given x_t and the predicted x0.",
        equation="x_s ~ q(x_s | x_t, x0)",
    ),
    SamplerCard(
        name="ddim",
        title="DDIM, and its inverse",
        family=TRAINING_FREE,
        made_by="core.solvers.ddim.DDIM",
        order="1",
        calls="1",
        reference="arXiv 2010.02502",
        idea="Keep the predicted x0 and noise, and mix them anew; any share of fresh noise.",
        equation="x_s = alpha_s x0 + sqrt(sigma_s^2 - h^2) eps + h z",
    ),
    SamplerCard(
        name="analytic-dpm",
        title="Analytic-DPM",
        family=TRAINING_FREE,
        made_by="core.solvers.analytic_dpm.AnalyticDPM",
        order="1",
        calls="1",
        reference="arXiv 2201.06503",
        idea="Ancestral sampling with the variance that is optimal, from the mean squared score.",
        equation="s^2 = h^2 + c^2 (sigma/alpha)^2 (1 - sigma^2 E|score|^2 / d)",
    ),
    SamplerCard(
        name="pndm",
        title="PNDM",
        family=TRAINING_FREE,
        made_by="core.solvers.pndm.PNDM",
        order="2",
        calls="1; 4 in the first three",
        reference="arXiv 2202.09778",
        idea="Adams-Bashforth's mean of the last predictions, in DDIM's step.",
        equation="eps' = (55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24",
    ),
    SamplerCard(
        name="deis",
        title="DEIS",
        family=TRAINING_FREE,
        made_by="core.solvers.deis.DEIS",
        order="1 to 4",
        calls="1",
        reference="arXiv 2204.13902",
        idea="Integrate the polynomial through the last predictions exactly.",
        equation="x_s / alpha_s = x / alpha + int P(eps) d(sigma/alpha)",
    ),
    SamplerCard(
        name="dpm-solver",
        title="DPM-Solver 1, 2, 3",
        family=TRAINING_FREE,
        made_by="core.solvers.dpm_solver.DPMSolver",
        order="1, 2, 3",
        calls="1, 2, 3",
        reference="arXiv 2206.00927",
        idea="Taylor's series of eps in half the log-SNR, by calls inside the step.",
        equation="x_s = (alpha_s / alpha) x - alpha_s int e^-l eps dl",
    ),
    SamplerCard(
        name="dpm-solver++",
        title="DPM-Solver++, multistep and singlestep",
        family=TRAINING_FREE,
        made_by="core.solvers.dpm_solver_pp.DPMSolverPPMultistep",
        order="1, 2, 3",
        calls="1; singlestep 2",
        reference="arXiv 2211.01095",
        idea="The same of x0, which stays bounded under strong guidance.",
        equation="x_s = (sigma_s / sigma) x + sigma_s int e^l x0 dl",
    ),
    SamplerCard(
        name="heun",
        title="Heun",
        family=TRAINING_FREE,
        made_by="core.solvers.heun.Heun",
        order="2",
        calls="2",
        reference="arXiv 2206.00364",
        idea="The trapezoid in the noise-to-signal ratio.",
        equation="y_s = y + (r_s - r)(eps(y) + eps(y')) / 2",
    ),
    SamplerCard(
        name="edm",
        title="EDM with churn",
        family=TRAINING_FREE,
        made_by="core.solvers.edm.EDM",
        order="2",
        calls="2",
        reference="arXiv 2206.00364",
        idea="A little noise back, then Heun's step over both.",
        equation="y' = y + sqrt(r'^2 - r^2) z, then Heun from r' to r_s",
    ),
    SamplerCard(
        name="adaptive-sde",
        title="Gotta Go Fast",
        family=TRAINING_FREE,
        made_by="core.solvers.adaptive_sde.sample_adaptive",
        order="1 and 2",
        calls="2, also for rejected steps",
        reference="arXiv 2105.14080",
        idea="Steps of the reverse SDE as long as an embedded pair allows, for each sample.",
        equation="h' = 0.9 h / error^0.9, error = rms |x' - x''| / tolerance",
    ),
    SamplerCard(
        name="era",
        title="ERA-Solver",
        family=TRAINING_FREE,
        made_by="core.solvers.era.ERA",
        order="its bases",
        calls="1",
        reference="arXiv 2301.12935",
        idea="Adams' implicit method, its unknown extrapolated from the bases that err least.",
        equation="eps_s = sum_j l_j(s) eps_j",
    ),
    SamplerCard(
        name="splitting",
        title="Operator splitting of guidance",
        family=TRAINING_FREE,
        made_by="core.solvers.splitting.Splitting",
        order="1 (Lie-Trotter), 2 (Strang)",
        calls="those of its two solvers",
        reference="arXiv 2301.11558",
        idea="Step along the model by a high-order solver, and along the guidance by a plain one.",
        equation="dy/dr = eps + g, one after the other",
    ),
    SamplerCard(
        name="unipc",
        title="UniPC",
        family=TRAINING_FREE,
        made_by="core.solvers.unipc.UniPC",
        order="p + 1",
        calls="1",
        reference="arXiv 2302.04867",
        idea="A predictor, and a corrector by the call that the next step makes anyway.",
        equation="x_s = DDIM - alpha_s B(h) sum_k a_k D_k / r_k",
    ),
    SamplerCard(
        name="dp-schedule",
        title="Dynamic-programming schedule",
        family=TRAINED,
        made_by="core.solvers.dp_schedule.dp_schedule",
        order="that of its solver",
        calls="that of its solver",
        reference="arXiv 2106.03802",
        idea="The K times of a grid with the best evidence bound, found exactly.",
        equation="C[k, r] = min_s C[k - 1, s] + KL(s, r)",
    ),
    SamplerCard(
        name="ggdm",
        title="GGDM, learned by DDSS",
        family=TRAINED,
        made_by="core.solvers.ggdm.GGDM",
        order="as learned",
        calls="1",
        reference="arXiv 2202.05830",
        idea="A sampler whose coefficients descend a kernel distance through all its steps.",
        equation="x_s = sum_j a_sj x_j + b_s x0 + c_s z, d KID / d(a, b, c)",
    ),
    SamplerCard(
        name="extended-analytic-dpm",
        title="Extended Analytic-DPM",
        family=TRAINED,
        made_by="core.solvers.extended_analytic_dpm.ExtendedAnalyticDPM",
        order="1",
        calls="1, and 1 of the second moment",
        reference="arXiv 2206.07309",
        idea="The optimal variance of every element, by a network that learns E[eps^2].",
        equation="Var x0 = (sigma/alpha)^2 (h - eps^2), h = E[eps^2 | x_t]",
    ),
    SamplerCard(
        name="discriminator-guidance",
        title="Discriminator guidance",
        family=TRAINED,
        made_by="core.solvers.discriminator_guidance.DiscriminatorGuidance",
        order="that of its solver",
        calls="1, and 1 of the discriminator",
        reference="arXiv 2211.17091",
        idea="A discriminator of samples and data repairs the score.",
        equation="score + grad log(d / (1 - d))",
    ),
)
