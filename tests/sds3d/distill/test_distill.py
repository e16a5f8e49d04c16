"""`sds3d distill`, `sample` and `methods`: files, refusals, resuming."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import core.solvers
from core.distillation.method import Distillation, Needs
from core.distillation.point_cloud_ground import point_cloud_ground
from core.schedule import diffuse
from sds3d import cli
from sds3d.assets import shipped
from sds3d.distill.catalogue import METHODS, card_as_dict, find_method, make_method
from sds3d.distill.digits import digit_classifier, digits
from sds3d.distill.grounds import GroundName, NamedGround, load_clouds, named_ground
from sds3d.distill.measure import conditioning, digits_floor, draw, measure, teacher_samples
from sds3d.distill.refusals import GROUND_HAS
from sds3d.distill.run import DistillConfig, distill
from sds3d.distill.samplers import SAMPLERS
from sds3d.distill.students import load_student
from sds3d.errors import BadInput, Interrupted
from sds3d.events import Distilled, DistillStep, Event


def test_every_method_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [line["name"] for line in listed] == [m.card.name for m in METHODS]
    assert all(line["idea"] and line["equation"] and line["reference"] for line in listed)
    assert cli.main(["methods"]) == 0
    text = capsys.readouterr().out
    names = [*(m.card.name for m in METHODS), *(sampler.name for sampler in SAMPLERS)]
    assert len(set(names)) == len(names)
    assert all(f"  {name} " in text for name in names)


def test_every_sampler_of_the_library_has_a_line() -> None:
    """One for each file, but those that hold what several share; and it names what is there."""
    shared = {"__init__", "ancestral", "exponential", "interpolation", "sampling"}
    files = {path.stem for path in Path(core.solvers.__path__[0]).glob("*.py")} - shared
    assert {sampler.made_by.split(".")[2] for sampler in SAMPLERS} == files
    for sampler in SAMPLERS:
        module, _, name = sampler.made_by.rpartition(".")
        assert name in import_module(module).__all__
        assert sampler.reference.removeprefix("arXiv ") in (import_module(module).__doc__ or "")


GROUNDS: dict[str, GroundName] = {"psf": "clouds", "riemannian": "mixture"}


def ground_for(method: type[Distillation]) -> NamedGround:
    """The smallest that serves it."""
    labels = {Needs.LABELS, Needs.CLASSIFIER} & method.card.needs
    ground = named_ground("mixture" if labels else GROUNDS.get(method.card.name, "mixture-1d"))
    if ground.name != "clouds":
        return ground
    # Pairs of clouds are made thousands of points at a time: fewer points, narrower networks.
    few = load_clouds(shipped("clouds"))[:6, :6]
    return replace(ground, ground=point_cloud_ground(few, width=16))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.card.name)
def test_every_method_trains_and_samples_on_some_ground(method) -> None:
    ground = ground_for(method)
    nfe = method.card.nfe[0]
    made = make_method(method, ground, steps=8, nfe=nfe, batch=16, learning_rate=1e-3, seed=0)
    before = {k: v.clone() for k, v in made.student.state_dict().items()}
    from core.training import train

    train(made)
    after = made.student.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    states, _ = draw(made, ground, nfe, 7, seed=1)
    assert states[-1].shape == (7, *ground.ground.shape)
    assert bool(states[-1].isfinite().all())
    assert card_as_dict(method)["nfe"] == list(method.card.nfe)


def test_a_student_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    events: list[Event] = []
    config = DistillConfig(
        method="guided-progressive", steps=30, nfe=4, batch=32, samples=200, out=tmp_path
    )
    folder = distill(config, events.append, lambda: False)
    assert {p.name for p in folder.iterdir()} == {
        "student.safetensors", "student.json", "samples.safetensors", "samples.png", "history.png",
        "student.png", "teacher.png", "teacher-few.png", "history.json",
    }  # fmt: skip
    assert isinstance(events[-1], Distilled)
    assert any(isinstance(e, DistillStep) for e in events)
    method, card, ground = load_student(folder)
    assert card.nfe == 4
    states, _ = draw(method, ground, 4, 200, seed=1)
    teacher = teacher_samples(ground, 200, 1)
    again = measure(ground, states[-1], teacher, 2)
    document = json.loads((folder / "student.json").read_text())
    for name, value in again.items():
        assert document["measured"][name] == pytest.approx(value, rel=1e-5, abs=1e-7)
    few, many = document["teacher"]
    assert (few["nfe"], many["nfe"], many["to_teacher"]) == (4, 64, 0.0)
    by_few = measure(ground, teacher_samples(ground, 200, 1, 4), teacher, 2)
    assert few["to_teacher"] == pytest.approx(by_few["to_teacher"], rel=1e-5) != 0.0
    kept = load_file(folder / "samples.safetensors")
    torch.testing.assert_close(kept["samples"], states[-1])
    torch.testing.assert_close(kept["teacher"], teacher)
    assert len(kept["labels"]) == 200


def test_the_whole_ground_of_clouds_is_of_unit_variance_and_its_teacher_knows_it() -> None:
    ground = named_ground("clouds").ground
    x0 = ground.data(50, torch.Generator().manual_seed(0)).x0
    assert x0.shape == (50, 64, 3)
    assert float(x0.square().mean()) == pytest.approx(1.0, abs=0.2)
    t = torch.full((50,), 0.05)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    x_t = diffuse(ground.schedule, x0, eps, t)
    seen = ground.teacher(x_t, t).x0
    assert float((seen - x0).square().mean()) < 0.2 * float((x_t - x0).square().mean())


def test_an_interrupted_training_goes_on_to_the_same_student(tmp_path: Path) -> None:
    def config(out: str) -> DistillConfig:
        return DistillConfig(
            method="dmd2", steps=12, batch=16, samples=100, out=tmp_path / out, seed=3
        )

    whole = distill(config("whole"), lambda _: None, lambda: False)
    asked = iter([False] * 6 + [True] * 100)
    with pytest.raises(Interrupted, match="goes on from step 7 of 12"):
        distill(config("parts"), lambda _: None, lambda: next(asked))
    parts = distill(config("parts"), lambda _: None, lambda: False)
    a, b = ((f / "student.safetensors").read_bytes() for f in (whole, parts))
    assert a == b


def test_what_does_not_go_together_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in [
        (["ufogan"], "no distillation method 'ufogan'; nearest: ufogen"),
        (["guidance", "--teacher", "mixture-1d", "--nfe", "8"], "needs class labels"),
        (["cfd", "--teacher", "mixture-1d"], "needs a classifier"),
        (["psf"], "psf needs point clouds, and the ground mixture has none: give --teacher clouds"),
        (["shortcut", "--nfe", "3"], "shortcut is meant for --nfe 1, 2, 4, 8, not for 3"),
        (["kd", "--nfe", "4"], "kd is meant for --nfe 1, not for 4"),
        (["progressive", "--nfe", "3"], "teacher_steps must be nfe times"),
        (["guidance", "--teacher", "toybox", "--nfe", "8", "--picture-every", "1"], "leave it out"),
        (["kd", "--teacher", "sdxl"], "--teacher is 'sdxl': give one of mixture"),
        (["kd", "--steps", "0"], "--steps is 0"),
    ]:
        assert cli.main(["distill", *words, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_picture_of_samples_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "meanflow", "--steps", "5", "--samples", "100", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    folder = capsys.readouterr().out.strip().splitlines()[-1]
    grid = tmp_path / "pictures" / "grid.png"
    assert cli.main(["sample", folder, "--nfe", "2", "--out", str(grid)]) == 0
    assert capsys.readouterr().out.strip() == str(grid)
    with Image.open(grid) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 20


@pytest.mark.parametrize("damage", ["weights", "card", "nothing"])
def test_damaged_students_are_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "none"
    if damage != "nothing":
        config = DistillConfig(method="kd", steps=2, batch=8, samples=100, out=tmp_path)
        folder = distill(config, lambda _: None, lambda: False)
        name = "student.safetensors" if damage == "weights" else "student.json"
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput):
        load_student(folder)


def test_the_digits_teacher_makes_digits() -> None:
    train, test = digits()
    classifier = digit_classifier(shipped("digits"))
    with torch.no_grad():
        right = (classifier(test.images).argmax(1) == test.labels).float().mean()
    assert float(right) > 0.97
    ground = named_ground("digits")
    n = 1000
    made = teacher_samples(ground, n, seed=0, steps=24)
    cond = conditioning(ground, n, torch.Generator().manual_seed(0))
    assert cond is not None
    assert cond.labels is not None
    asked = cond.labels >= 0
    with torch.no_grad():
        seen = classifier(made).argmax(1)
    assert float((seen == cond.labels)[asked].float().mean()) > 0.9
    figures = measure(ground, made, made, 0)
    noise = torch.randn(n, 64, generator=torch.Generator().manual_seed(1)) * train.images.std()
    assert figures["frechet"] < digits_floor(ground) < measure(ground, noise, made, 0)["frechet"]


def test_what_a_ground_has_is_what_the_refusals_say() -> None:
    assert set(GROUND_HAS) == set(get_args(GroundName))
    for name in get_args(GroundName):
        ground = named_ground(name)
        assert ("class labels" in GROUND_HAS[name]) is ground.has_labels
        assert ("a classifier" in GROUND_HAS[name]) is (ground.classifier is not None)
        assert ("point clouds" in GROUND_HAS[name]) is (len(ground.ground.shape) == 2)
    needs = {need.value for need in Needs}
    assert all(found <= needs for found in GROUND_HAS.values())


def test_only_methods_that_need_labels_are_told_the_mode() -> None:
    ground = named_ground("mixture")
    for method in METHODS:
        served = ground.serving(method.card)
        told = served.ground.data(4, torch.Generator().manual_seed(0)).cond is not None
        assert told is served.has_labels is (Needs.LABELS in method.card.needs)
        assert served.mixture is ground.mixture
    digits = named_ground("digits")
    assert digits.serving(METHODS[0].card) is digits


def test_students_of_a_seed_start_from_their_teacher_s_noise_and_classes() -> None:
    """Guided ones too, whose own batches draw scales besides."""
    ground = named_ground("digits")
    starts = []
    for name in ("kd", "guidance"):
        method = make_method(
            find_method(name), ground, steps=2, nfe=find_method(name).card.nfe[0], batch=4,
            learning_rate=1e-3, seed=0,
        )  # fmt: skip
        states, cond = draw(method, ground, method.card.nfe[0], 50, seed=3)
        assert cond is not None
        assert cond.labels is not None
        assert (cond.guidance_scale is None) == (name == "kd")
        starts.append((states[0], cond.labels))
    generator = torch.Generator().manual_seed(3)
    cond = conditioning(ground, 50, generator)
    assert cond is not None
    assert cond.labels is not None
    noise = ground.ground.noise(50, generator)
    for start, labels in starts:
        assert torch.equal(start, noise)
        assert torch.equal(labels, cond.labels)


def test_directions_are_compared_with_directions() -> None:
    ground = named_ground("mixture").serving(find_method("riemannian").card)
    teacher = teacher_samples(ground, 3000, seed=1)
    fresh = ground.ground.data(3000, torch.Generator().manual_seed(5)).x0
    directions = fresh / fresh.norm(dim=1, keepdim=True)
    right = measure(ground, directions, teacher, 2, are_directions=True)
    wrong = measure(ground, directions, teacher, 2)
    assert right["sliced_wasserstein"] < 0.06 < 0.15 < wrong["sliced_wasserstein"]
    assert right["to_teacher"] < 0.06 < 0.15 < wrong["to_teacher"]
    assert "mode_weight_error" not in right


def test_terms_that_are_sums_do_not_outgrow_the_critic() -> None:
    """Their weight falls with the coordinates; in the plane it is the method's own."""
    for name, weight in [("add", "distillation_weight"), ("ufogen", "reconstruction_weight")]:
        found = []
        for ground in ("mixture-1d", "mixture", "digits"):
            method = make_method(
                find_method(name), named_ground(ground), steps=1, nfe=1, batch=4,
                learning_rate=1e-3, seed=0,
            )  # fmt: skip
            found.append(getattr(method, weight))
        own = inspect.signature(find_method(name)).parameters[weight].default
        assert found == [own, own, pytest.approx(own / 32)]


def test_names_of_methods_are_found() -> None:
    assert find_method("dmd2").card.name == "dmd2"
    with pytest.raises(BadInput, match="nearest: progressive"):
        find_method("progresive")
