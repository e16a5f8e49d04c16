"""Components of a diffusers folder as torch modules: safetensors only, no network, no pickle."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.utils.import_utils import is_accelerate_available
from torch import nn
from transformers import PreTrainedTokenizerBase

from core.discrete_schedule import DiscreteVPSchedule
from core.frozen import freeze
from core.out_of_memory import raise_shortage
from core.prediction import Parametrisation
from core.schedule import from_diffusers
from core.teachers.errors import TeacherOptionError, TeacherWeightsError
from core.teachers.folder import TeacherFolder
from core.teachers.quiet import quiet
from core.teachers.teacher import DTYPES, DTypeName

__all__ = ["choose_dtype", "discrete_schedule", "load_model", "load_tokenizer"]

ModelT = TypeVar("ModelT", bound=nn.Module)

_GIVEN = {
    "epsilon": Parametrisation.EPS,
    "v_prediction": Parametrisation.V_PREDICTION,
    "sample": Parametrisation.X0,
}


def choose_dtype(name: DTypeName, device: torch.device, published: torch.dtype) -> torch.dtype:
    """The dtype of that name; "auto" is float32 on the CPU and `published` on CUDA, where
    bfloat16 becomes float16 on devices without it."""
    if name != "auto":
        if name not in DTYPES:
            raise TeacherOptionError(f"dtype is {name!r}: give auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    if published is torch.bfloat16 and not torch.cuda.is_bf16_supported():
        return torch.float16
    return published


def load_model(
    folder: TeacherFolder,
    name: str,
    kind: type[ModelT],
    dtype: torch.dtype,
    device: torch.device,
) -> ModelT:
    """The frozen component `name` of class `kind` on `device`.

    On torch's meta device it is an outline of its config's shapes, and no weights are read.

    Raises TeacherWeightsError where it is of another class, missing, incomplete or damaged.
    """
    component = folder.component(name, kind.__name__)
    if device.type == "meta":
        return _outline(folder, name, kind, dtype)
    how: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
        "variant": component.variant,
    }
    if issubclass(kind, ModelMixin):
        # Without accelerate every weight is held twice while it is read.
        how |= {"torch_dtype": dtype, "low_cpu_mem_usage": is_accelerate_available()}
    else:
        how |= {"dtype": dtype}
    loader: Any = kind
    try:
        with quiet():
            model, info = loader.from_pretrained(folder.path / name, **how)
        # Both libraries only warn of a tensor that is not in the file, and draw it at random.
        # What is left over is harmless: old files hold buffers that are now computed.
        for fault in ("missing_keys", "mismatched_keys"):
            if info.get(fault):
                raise ValueError(f"{fault.replace('_', ' ')}: {sorted(map(str, info[fault]))[0]}")
    except Exception as error:
        raise_shortage(error)
        raise _damaged(folder, name, error) from error
    freeze(model)
    if issubclass(kind, ModelMixin) and not kind._keep_in_fp32_modules:
        # Where the first tensor of a model is a float32 buffer (SD3's positions), diffusers takes
        # the parameters as they lie in the file, whatever was asked for.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    nn.Module.to(model, device)
    return model


def _outline(folder: TeacherFolder, name: str, kind: type[ModelT], dtype: torch.dtype) -> ModelT:
    maker: Any = kind
    try:
        with quiet(), torch.device("meta"):
            if issubclass(kind, ModelMixin):
                model = maker.from_config(maker.load_config(folder.path / name))
            else:
                model = maker(maker.config_class.from_pretrained(folder.path / name))
    except Exception as error:
        raise_shortage(error)
        raise _damaged(folder, name, error) from error
    freeze(model)
    nn.Module.to(model, dtype=dtype)
    return model


def load_tokenizer(
    folder: TeacherFolder, name: str, kind: type[PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase:
    """The tokenizer `name`, read as class `kind` whatever the folder would have imported."""
    folder.component(name)
    try:
        with quiet():
            return kind.from_pretrained(folder.path / name, local_files_only=True)
    except Exception as error:
        raise_shortage(error)
        raise _damaged(folder, name, error) from error


def discrete_schedule(folder: TeacherFolder) -> tuple[DiscreteVPSchedule, Parametrisation]:
    """The schedule of the folder's training timesteps, and what its network predicts.

    The scheduler in the folder is a sampler's; of it only the betas of the training are read.
    """
    folder.component("scheduler")
    try:
        path = folder.path / "scheduler" / "scheduler_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        given = _GIVEN[config.get("prediction_type", "epsilon")]
        if "beta_schedule" not in config:
            raise ValueError(f"{config.get('_class_name', path.name)} has no beta_schedule")
        known = {k: v for k, v in config.items() if k in _TRAINING}
        schedule = from_diffusers(DDPMScheduler(**known))
        if not isinstance(schedule, DiscreteVPSchedule):
            raise ValueError("it has no discrete timesteps")
    except Exception as error:
        raise _damaged(folder, "scheduler", error) from error
    return schedule, given


_TRAINING = {
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
}


def _damaged(folder: TeacherFolder, name: str, error: Exception) -> TeacherWeightsError:
    said = str(error).strip() or type(error).__name__
    # Its first sentence: what follows in the libraries' words is meant for programmers.
    reason = re.split(r"\. (?=[A-Z])|\n", said)[0][:200]
    return TeacherWeightsError(
        f"the teacher's {name} in {folder.path} is damaged or of another kind ({reason}): download "
        "or copy the folder again"
    )
