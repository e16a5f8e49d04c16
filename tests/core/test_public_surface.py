"""What core offers, written down: a change of it is a decision, not an accident."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import core

# Not core.teachers: their modules import diffusers and transformers, and have a test of their own.
PUBLIC = {
    "core.denoiser": {
        "ClassifierFreeGuidance",
        "Conditioning",
        "Denoiser",
        "Guidance",
        "GuidedPrediction",
        "PerpNegGuidance",
        "can_concatenate",
        "concatenate",
    },
    "core.denoising": {
        "DenoiserTraining",
        "ScaledInput",
        "annealed_langevin",
        "denoising_loss",
        "divergence",
        "fisher_divergence",
        "hyvarinen_score",
        "langevin",
    },
    "core.discrete_schedule": {"DiscreteVPSchedule"},
    "core.distillation.field.classifier_features": {
        "ClassifierFeatureDistillation",
        "mixture_classifier",
    },
    "core.distillation.field.consistency": {
        "ConsistencyDistillation",
        "ConsistencyMethod",
        "ConsistencyTraining",
        "solver_step",
    },
    "core.distillation.field.ctm": {"CTM"},
    "core.distillation.field.guidance": {
        "GuidanceDistillation",
        "GuidedProgressive",
        "GuidedTeacher",
        "guided_ground",
    },
    "core.distillation.field.knowledge": {"KnowledgeDistillation"},
    "core.distillation.field.lcm": {"LatentConsistency"},
    "core.distillation.field.coupling": {"CurvatureCoupling"},
    "core.distillation.field.dsno": {"DSNO", "TemporalFourierLayer", "TrajectoryNetwork"},
    "core.distillation.field.imitation": {"imitate_then", "imitation_loss"},
    "core.distillation.field.interpolants": {"StochasticInterpolants"},
    "core.distillation.field.mmd_ddm": {"MMDFineTuning"},
    "core.distillation.field.psf": {"PointStraightFlow"},
    "core.distillation.field.reflow": {"Reflow", "straightness", "transport_cost"},
    "core.distillation.field.riemannian": {"RiemannianFlowMatching"},
    "core.distillation.field.self_consistent_velocity": {"SelfConsistentVelocity"},
    "core.distillation.field.sft_pg": {"PolicyGradient"},
    "core.distillation.field.trajectories": {"TrajectoryBatch", "TrajectoryPool"},
    "core.distillation.point_cloud_ground": {
        "PointCloudDenoiser",
        "PointNetwork",
        "point_cloud_ground",
    },
    "core.distillation.field.mean_flow": {"MeanFlow"},
    "core.distillation.field.velocity_student": {"VelocityStudent"},
    "core.distillation.field.counted_students": {"CountedStudents"},
    "core.distillation.field.progressive": {
        "require_x0",
        "ProgressiveDistillation",
        "inherit_weights",
        "truncated_snr",
        "x0_of_step",
    },
    "core.distillation.field.shortcut": {"ShortcutModel"},
    "core.distillation.field.tract": {"TRACT"},
    "core.distillation.generator.adversarial": {"ADD", "alpha_weighting"},
    "core.distillation.generator.conditional_kl": {"ConditionalKL"},
    "core.distillation.generator.critic": {
        "critic_logits",
        "discriminator_loss",
        "generator_loss",
        "gradient_penalty",
    },
    "core.distillation.generator.diff_instruct": {"DiffInstruct"},
    "core.distillation.generator.dmd": {"DMD"},
    "core.distillation.generator.dmd2": {"DMD2"},
    "core.distillation.generator.fake_score": {
        "DenoiserGenerator",
        "FakeScoreDistillation",
        "denoiser_from_teacher",
    },
    "core.distillation.generator.ladd": {
        "LADD",
        "TeacherFeatures",
        "module_features",
        "prediction_features",
    },
    "core.distillation.generator.noised_start": {"NoisedStartDistillation"},
    "core.distillation.generator.one_step": {"GeneratorDistillation"},
    "core.distillation.generator.particle_vsd": {"ParticleVSD", "Particles"},
    "core.distillation.generator.sds_generator": {"SDSGenerator"},
    "core.distillation.generator.sid": {"SiD"},
    "core.distillation.generator.ufogen": {"UFOGen"},
    "core.distillation.method": {
        "Batch",
        "Distillation",
        "Family",
        "Ground",
        "MethodCard",
        "Needs",
        "Settings",
        "StudentKind",
    },
    "core.distillation.mixture_ground": {"mixture_ground", "ring_mixture", "two_mode_mixture"},
    "core.distillation.students": {
        "ConsistencyFunction",
        "DDIMFlowMap",
        "FlowMap",
        "Generator",
        "NetworkDenoiser",
        "VelocityFlowMap",
        "sample_by_jumps",
        "sample_by_noising",
        "sample_by_solver",
    },
    "core.distillation.score.sds": {
        "SDS",
        "ScoreDistillation",
        "Weighting",
        "dreamfusion_weighting",
        "eps_weighting",
        "surrogate_loss",
        "x0_weighting",
    },
    "core.distillation.score.vsd": {"VSD"},
    "core.distillation.score.cds": {"CDS"},
    "core.distillation.score.csd": {"CSD"},
    "core.distillation.score.hifa": {"HiFA", "ddim_denoise"},
    "core.distillation.score.inversion": {"START", "ddim_invert"},
    "core.distillation.score.ism": {"ISM"},
    "core.distillation.score.nfsd": {"NFSD", "NFSD_NEGATIVE_PROMPT"},
    "core.distillation.score.reconstruction": {"Reconstruction"},
    "core.distillation.score.sdi": {"SDI"},
    "core.distillation.score.sjc": {"SJC"},
    "core.exact_flow": {"ExactFlowMap"},
    "core.frozen": {"freeze", "parameter_sha256"},
    "core.guidance": {
        "EmbeddedGuidance",
        "EmbedsGuidance",
        "GuidanceRescale",
        "Unconditional",
        "guided",
    },
    "core.metrics": {
        "chamfer_distance",
        "frechet_distance",
        "mmd_squared",
        "mode_weights",
        "sliced_wasserstein",
        "wasserstein_1d",
    },
    "core.mixture": {"GaussianMixture", "MixtureDenoiser", "NoisedMixture"},
    "core.networks": {"MLP", "Network"},
    "core.out_of_memory": {"is_out_of_memory", "raise_shortage"},
    "core.prediction": {"Parametrisation", "Prediction"},
    "core.schedule": {
        "CosineSchedule",
        "FlowSchedule",
        "NoiseSchedule",
        "VESchedule",
        "VPSchedule",
        "diffuse",
        "from_diffusers",
        "noise_like",
        "per_sample",
    },
    "core.solvers.adaptive_sde": {"AdaptiveSDEConfig", "AdaptiveSample", "sample_adaptive"},
    "core.solvers.analytic_dpm": {"AnalyticDPM", "x0_variance"},
    "core.solvers.ancestral": {"require_denoising"},
    "core.solvers.ddim": {"DDIM", "ddim_coefficients", "ddim_step"},
    "core.solvers.ddpm": {"DDPM", "transition_variance"},
    "core.solvers.deis": {"DEIS"},
    "core.solvers.discriminator_guidance": {
        "Discriminator",
        "DiscriminatorGuidance",
        "discriminator_loss",
    },
    "core.solvers.dp_schedule": {"DPSchedule", "dp_schedule", "kl_costs", "x0_squared_error"},
    "core.solvers.dpm_solver": {"DPMSolver"},
    "core.solvers.dpm_solver_pp": {"DPMSolverPPMultistep", "DPMSolverPPSinglestep"},
    "core.solvers.edm": {"EDM"},
    "core.solvers.era": {"ERA", "ERAState"},
    "core.solvers.euler_maruyama": {"EulerMaruyama", "sde_coefficients"},
    "core.solvers.exponential": {
        "half_log_snr",
        "hold_eps",
        "hold_x0",
        "is_finite_step",
        "remember",
        "t_of_half_log_snr",
    },
    "core.solvers.extended_analytic_dpm": {
        "ExtendedAnalyticDPM",
        "SecondMoment",
        "SecondMomentTraining",
        "second_moment_loss",
    },
    "core.solvers.ggdm": {"GGDM", "SearchConfig", "kernel_distance", "search_sampler"},
    "core.solvers.heun": {"Heun"},
    "core.solvers.interpolation": {
        "Variable",
        "check_variable",
        "integrate_eps",
        "lagrange",
        "place",
    },
    "core.solvers.pndm": {"PNDM"},
    "core.solvers.sampling": {"Solver", "Trajectory", "log_snr_times", "sample"},
    "core.solvers.splitting": {
        "ClassifierFreeTerm",
        "GuidanceTerm",
        "Splitting",
        "SplittingState",
    },
    "core.solvers.unipc": {"UniPC", "UniPCState"},
    "core.sphere": {"exp_map", "geodesic", "log_map", "tangent_part", "uniform_on_sphere"},
    "core.timesteps": {"Pace", "TimestepPolicy", "TimestepWindow", "WeightedNonIncreasing"},
    "core.training": {"DivergedError", "History", "Method", "Player", "Stage", "train"},
    "core.transfer": {"to_device"},
}


def modules() -> dict[str, object]:
    found = pkgutil.walk_packages(core.__path__, "core.", onerror=lambda name: None)
    names = [
        info.name for info in found if not info.ispkg and not info.name.startswith("core.teachers.")
    ]
    return {name: importlib.import_module(name) for name in names}


def test_every_module_declares_what_is_written_here() -> None:
    declared = {name: set(getattr(module, "__all__", ())) for name, module in modules().items()}
    assert declared == PUBLIC


def test_nothing_public_is_left_undeclared() -> None:
    for name, module in modules().items():
        own = {
            attribute
            for attribute, value in vars(module).items()
            if not attribute.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == name
        }
        assert own <= PUBLIC[name], f"{name} has undeclared {own - PUBLIC[name]}"
        assert all(hasattr(module, attribute) for attribute in PUBLIC[name])


def test_everything_public_says_what_it_is() -> None:
    for name, module in modules().items():
        for attribute in PUBLIC[name] - {"TeacherFeatures", "Variable", "Weighting"}:
            doc = inspect.getdoc(getattr(module, attribute))
            assert doc, f"{name}.{attribute} has no docstring"
            # A dataclass without one gets its signature for a docstring.
            assert not doc.startswith(f"{attribute}("), f"{name}.{attribute} has no docstring"
