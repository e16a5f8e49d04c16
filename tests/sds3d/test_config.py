"""Options: exact through JSON, named by a key, and refused with the field and the remedy."""

import dataclasses
import hashlib
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from sds3d.config import MAX_PROMPT_CHARACTERS, GenerateConfig, MeshConfig, clean_prompt
from sds3d.config_json import (
    ALGORITHM_VERSION,
    canonical_json,
    folder_name,
    from_dict,
    run_key,
    slug,
    to_dict,
)
from sds3d.errors import BadInput, ConfigError, PromptError
from sds3d.optimize_config import FieldOptions, OptimizeConfig
from sds3d.presets import PRESETS, generate_config

WEIGHTS = "a" * 64


def _leaves(config: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = (*prefix, field.name)
        found += _leaves(value, path) if dataclasses.is_dataclass(value) else [path]
    return found


def _at(document: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        document = document[name]
    return document


def _put(document: Any, path: tuple[str, ...], value: Any) -> None:
    _at(document, path[:-1])[path[-1]] = value


@pytest.mark.parametrize("preset", ["fast", "balanced", "quality"])
def test_a_config_survives_json_exactly(preset: Any) -> None:
    config = generate_config(preset, prompt="a red mushroom", seed=7, out=Path("a/b"))
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert run_key(again, WEIGHTS) == run_key(config, WEIGHTS)


def test_presets_differ_and_explicit_options_win() -> None:
    keys = {run_key(generate_config(name, prompt="p"), WEIGHTS) for name in PRESETS}
    assert len(keys) == len(PRESETS) == 12
    mesh = MeshConfig(max_faces=123)
    config = generate_config("fast", prompt="p", mesh=mesh)
    assert config.mesh is mesh
    assert config.optimize == PRESETS["fast"].optimize
    assert config.preset == "fast"


def test_the_key_depends_on_everything_that_determines_the_result_and_on_nothing_else() -> None:
    config = generate_config("fast", prompt="a red mushroom")
    key = run_key(config, WEIGHTS)
    assert len(key) == 12
    assert int(key, 16) >= 0
    changed: dict[str, Any] = {
        "prompt": "a blue mushroom",
        "negative_prompt": "fog",
        "seed": 1,
        "preset": "balanced",
        "device": "cpu",
        "optimize": dataclasses.replace(config.optimize, steps=7),
        "mesh": MeshConfig(max_faces=777),
    }
    for name, value in changed.items():
        assert run_key(dataclasses.replace(config, **{name: value}), WEIGHTS) != key, name
    assert run_key(config, "b" * 64) != key
    deep = dataclasses.replace(config.optimize, field=FieldOptions(n_levels=3))
    assert run_key(dataclasses.replace(config, optimize=deep), WEIGHTS) != key
    unchanged: dict[str, Any] = {"out": Path("x"), "checkpoint_seconds": 1.0, "teacher": "a/folder"}
    for name, value in unchanged.items():
        assert run_key(dataclasses.replace(config, **{name: value}), WEIGHTS) == key, name


def test_what_earlier_versions_wrote_is_read_and_keeps_its_key() -> None:
    config = generate_config("fast", prompt="a red mushroom")
    document = to_dict(config)
    added_later = [f for f in dataclasses.fields(config.optimize) if f.metadata]
    assert {"extra_steps", "method", "view_prompts"} <= {f.name for f in added_later}
    for f in added_later:
        del document["optimize"][f.name]
    assert from_dict(document) == config
    # Without them the key is made of the same document as before there were any.
    options = {
        k: v for k, v in document.items() if k not in ("out", "checkpoint_seconds", "teacher")
    }
    before = {"algorithm": ALGORITHM_VERSION, "config": options, "weights_sha256": WEIGHTS}
    digest = hashlib.sha256(canonical_json(before).encode()).hexdigest()
    assert run_key(config, WEIGHTS) == digest[:12]
    longer = dataclasses.replace(config.optimize, extra_steps=5)
    assert longer.total_steps == config.optimize.steps + 5
    assert run_key(dataclasses.replace(config, optimize=longer), WEIGHTS) != digest[:12]


def test_the_key_is_the_same_in_every_version_of_the_program() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"\\u00fc","b":[1,2.5]}'


def test_prompts_that_look_alike_are_the_same_prompt() -> None:
    composed, decomposed = "a café table", "a cafe\u0301 table"
    assert composed != decomposed
    assert GenerateConfig(prompt=decomposed) == GenerateConfig(prompt=composed)
    assert GenerateConfig(prompt="  a\tred\nmushroom ").prompt == "a red mushroom"


@pytest.mark.parametrize("prompt", ["", "   ", "\n", "\u3000"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        GenerateConfig(prompt=prompt)


@pytest.mark.parametrize("character", ["\0", "\x1b", "\x7f", "\x85\x9b", "\udc80"])
def test_control_characters_and_broken_bytes_are_refused_by_name(character: str) -> None:
    with pytest.raises(PromptError, match=f"U\\+{ord(character[-1]):04X}"):
        GenerateConfig(prompt=f"a red{character} mushroom")
    with pytest.raises(PromptError, match="negative prompt"):
        GenerateConfig(prompt="a red mushroom", negative_prompt=f"fog{character}")


def test_a_long_prompt_is_refused_with_its_length() -> None:
    GenerateConfig(prompt="m" * MAX_PROMPT_CHARACTERS)
    with pytest.raises(PromptError, match="102400 characters"):
        GenerateConfig(prompt="m" * 102_400)


def test_folder_names_are_safe_whatever_the_prompt() -> None:
    draw = random.Random(0)
    alphabet = "../\\:*?\"<>| ~$`'\n%aZ9-_ÄßéÎ中😀\u202e"
    for _ in range(500):
        text = "".join(draw.choices(alphabet, k=draw.randint(1, 120)))
        name = slug(text)
        assert 0 < len(name) <= 40
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert not name.startswith("-")
        assert not name.endswith("-")
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("Äpfel & Birnen") == "apfel-birnen"
    assert slug("中文") == "prompt"
    config = GenerateConfig(prompt="a red mushroom")
    assert folder_name(config, WEIGHTS) == f"a-red-mushroom-{run_key(config, WEIGHTS)}"


def test_each_bad_option_is_named_by_its_flag_with_a_remedy() -> None:
    faults: list[tuple[Any, dict[str, Any]]] = [
        (OptimizeConfig, {"steps": 0}),
        (OptimizeConfig, {"guidance_scale": float("nan")}),
        (OptimizeConfig, {"views_per_step": 0}),
        (OptimizeConfig, {"resolutions": ()}),
        (OptimizeConfig, {"resolution_milestones": (0.1, 0.2)}),
        (OptimizeConfig, {"timestep_max": (1.5, 0.5)}),
        (OptimizeConfig, {"timestep_min": (0.99, 0.1)}),
        (OptimizeConfig, {"elevation_range_deg": (50.0, 10.0)}),
        (OptimizeConfig, {"step_size": 0.0}),
        (FieldOptions, {"n_features": 3}),
        (FieldOptions, {"finest_resolution": 4}),
        (MeshConfig, {"formats": ()}),
        (MeshConfig, {"formats": ("glb", "glb")}),
        (MeshConfig, {"formats": ("stl",)}),
        (MeshConfig, {"max_faces": 1}),
        (MeshConfig, {"texture_size": 8}),
    ]
    for kind, options in faults:
        flag = "--" + next(iter(options)).replace("_", "-")
        with pytest.raises(ConfigError, match=rf"^{flag} is .*: give"):
            kind(**options)
    rest: list[dict[str, Any]] = [
        {"seed": -1},
        {"seed": 2**63},
        {"preset": "slow"},
        {"teacher": ""},
        {"device": "tpu"},
        {"checkpoint_seconds": 0.0},
    ]
    for options in rest:
        flag = "--" + next(iter(options)).replace("_", "-")
        with pytest.raises(ConfigError, match=rf"^{flag} is .*: give"):
            GenerateConfig(prompt="p", **options)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    name: Any = "slow"
    with pytest.raises(ConfigError, match="fast, balanced, quality"):
        generate_config(name, prompt="p")


def test_a_thousand_damaged_documents_are_refused_or_valid_but_never_a_traceback() -> None:
    """Each leaf or branch of a valid document is replaced by something random, or removed."""
    draw = random.Random(1)
    junk: list[Any] = [
        None,
        True,
        -1,
        0,
        1.5,
        1e400,
        float("nan"),
        10**400,
        -(2**70),
        "",
        "x",
        "\0",
    ]
    junk += [[], [None], [[]], [0.5], [1e308] * 2, {}, {"steps": 1}, "../x", ["glb", "glb"]]
    valid = to_dict(generate_config("fast", prompt="a red mushroom"))
    paths = _leaves(generate_config("fast", prompt="p"))
    paths += [("optimize",), ("optimize", "field"), ("mesh",)]
    refused = 0
    for _ in range(1000):
        document = json.loads(json.dumps(valid))
        path = draw.choice(paths)
        if draw.random() < 0.1:
            del _at(document, path[:-1])[path[-1]]
        elif draw.random() < 0.1:
            _put(document, (*path[:-1], "no_such_option"), 1)
        else:
            _put(document, path, draw.choice(junk))
        error: BadInput | None = None
        try:
            config = from_dict(document)
            assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
        except BadInput as found:
            error = found
        if error is not None:
            refused += 1
            text = str(error)
            assert "\n" not in text
            assert len(text) < 300
            # The field itself, one that it is compared with, or the prompt's own rules.
            names = {path[-1], path[-1].partition("_")[0], "no_such_option", "prompt"}
            assert any(name.replace("_", "-") in text.replace("_", "-") for name in names), text
    assert refused > 500


@pytest.mark.parametrize("document", [None, [], "x", 3, {}, {"prompt": "p"}])
def test_a_document_of_another_shape_is_refused(document: Any) -> None:
    with pytest.raises(ConfigError, match="config"):
        from_dict(document)


def test_cleaning_is_idempotent_and_normalised() -> None:
    draw = random.Random(2)
    for _ in range(300):
        text = "".join(draw.choices("ab e\u0301\u0308\u00e9\ufb01Å\u212b\u3000中\t", k=20))
        once = clean_prompt(text)
        assert clean_prompt(once) == once
        assert unicodedata.is_normalized("NFC", once)
