"""Lists of prompts: each line is an item or is named by its number, and never a traceback."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from sds3d.batch.config import BatchConfig
from sds3d.batch.prompts import BadLines, parse, read_prompts
from sds3d.errors import BadInput, ConfigError


def _write(tmp_path: Path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def _teacher(tmp_path: Path) -> str:
    """What passes for a teacher's folder before its weights are loaded."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return str(folder)


def test_a_text_list_is_a_prompt_a_line(tmp_path: Path) -> None:
    content = "\ufeffa red mushroom\r\n\n# a remark\n  a blue  car \n"
    name = _write(tmp_path, "list.txt", content)
    found = read_prompts(BatchConfig(prompts=name, preset="fast", seed=4, steps=7, out=tmp_path))
    assert [(line.number, line.config.prompt) for line in found.lines] == [
        (1, "a red mushroom"),
        (4, "a blue car"),
    ]
    config = found.lines[0].config
    assert (config.preset, config.seed, config.optimize.steps) == ("fast", 4, 7)
    assert config.mesh.max_faces == 20_000
    assert config.out == tmp_path


def test_json_lines_win_over_the_options(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a red mushroom"},
        {"prompt": "a car", "seed": 9, "preset": "fast", "steps": 5, "negative_prompt": "fog"},
        {"prompt": "a car", "teacher": _teacher(tmp_path)},
    ]
    name = _write(tmp_path, "list.jsonl", "\n".join(map(json.dumps, lines)))
    found = read_prompts(BatchConfig(prompts=name, seed=1, steps=3))
    first, second, third = (line.config for line in found.lines)
    assert (first.preset, first.seed, first.optimize.steps) == ("balanced", 1, 3)
    assert (second.preset, second.seed, second.optimize.steps) == ("fast", 9, 5)
    assert (second.negative_prompt, third.teacher) == ("fog", str(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 50_000, "not valid JSON"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "not valid JSON|seed"),
        ('["a"]', "not a JSON object"),
        ("{}", "has no prompt"),
        ('{"prompt": ""}', "the prompt is empty"),
        ('{"prompt": "a", "sede": 1}', "'sede' is unknown: the keys are prompt, seed"),
        ('{"prompt": "a", "seed": true}', "'seed' must be of type int"),
        ('{"prompt": "a", "seed": -1}', "--seed is -1"),
        ('{"prompt": "a", "steps": 0}', "--steps is 0"),
        ('{"prompt": "a", "preset": "slow"}', "fast, balanced, quality"),
        ('{"prompt": "a\\u0007"}', r"U\+0007"),
        ('{"prompt": "' + "m" * 1001 + '"}', "1001 characters"),
        ('{"prompt": "' + "m" * 200_000 + '"}', "shorten it"),
        ('{"prompt": "\\ud800"}', r"U\+D800"),
    ],
)
def test_a_bad_line_is_named_by_its_number_before_anything_starts(
    tmp_path: Path, line: str, reason: str
) -> None:
    content = f'{{"prompt": "a car"}}\n\n{line}\n{{"prompt": "a hat"}}\n'
    name = _write(tmp_path, "list.jsonl", content)
    with pytest.raises(BadLines, match=rf"line 3: .*({reason}).*--skip-bad") as refused:
        read_prompts(BatchConfig(prompts=name))
    assert refused.value.exit_code == 2
    assert len(str(refused.value)) < 500
    found = read_prompts(BatchConfig(prompts=name, skip_bad=True))
    assert [line.number for line in found.lines] == [1, 4]
    assert [number for number, _ in found.faults] == [3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a", "teacher": "nope"}', "--teacher is 'nope': give toybox"),
        ('{"prompt": "a", "preset": "mvdream"}', "--preset mvdream is a recipe for the teacher"),
    ],
)
def test_a_line_whose_teacher_is_not_here_is_bad_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, reason: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = _write(tmp_path, "list.jsonl", f'{{"prompt": "a car"}}\n{line}\n{{"prompt": "a hat"}}\n')
    with pytest.raises(BadLines, match=rf"line 2: .*{reason}.*--skip-bad"):
        read_prompts(BatchConfig(prompts=name))
    found = read_prompts(BatchConfig(prompts=name, skip_bad=True))
    assert [line.number for line in found.lines] == [1, 3]
    assert [number for number, _ in found.faults] == [2]
    alone = _write(tmp_path, "alone.jsonl", line)
    with pytest.raises(BadInput, match=rf"holds no prompt that can be used: line 1: .*{reason}"):
        read_prompts(BatchConfig(prompts=alone, skip_bad=True))


def test_many_bad_lines_are_counted_and_a_list_of_nothing_else_is_refused(tmp_path: Path) -> None:
    name = _write(tmp_path, "list.txt", b"\xff\n" * 25)
    with pytest.raises(BadLines, match=r"line 1: it is not valid UTF-8.*line 10:.*and 15 more"):
        read_prompts(BatchConfig(prompts=name))
    with pytest.raises(BadInput, match="holds no prompt"):
        read_prompts(BatchConfig(prompts=name, skip_bad=True))


@pytest.mark.parametrize("content", ["", "\n\n", "# only remarks\n"])
def test_an_empty_list_is_refused(tmp_path: Path, content: str) -> None:
    name = _write(tmp_path, "list.txt", content)
    with pytest.raises(BadInput, match="holds no prompt"):
        read_prompts(BatchConfig(prompts=name))


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for name in ("missing.txt", str(tmp_path), "a\0b.txt"):
        with pytest.raises(BadInput, match="cannot read"):
            read_prompts(BatchConfig(prompts=name))
    with pytest.raises(BadInput, match=r"neither .txt nor .jsonl"):
        read_prompts(BatchConfig(prompts=_write(tmp_path, "list.csv", "a car")))


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", "", "1 / 2"])
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(ConfigError, match=r"--shard .* give i/n"):
        BatchConfig(prompts="x.txt", shard=shard)


def test_a_thousand_fuzzed_lists_are_items_or_faults_with_their_line() -> None:
    draw = random.Random(5)
    pieces = [
        b"{", b"}", b"[", b'"', b":", b",", b'{"prompt": "a car"}', b'"seed"', b"1e999", b"-1",
        b"NaN", b"\n", b"\r", b"\xff", b"\x00", b"\xe2\x80\xae", b"a red hat", b"\\ud800", b"#",
        b" ", b"\t", b'{"prompt": "a car", "seed": ', b"9" * 30, b"null", b"true",
        b'{"prompt": ', b'{"steps": 1}', "\u2028".encode(), b"\x1b[2J",
    ]  # fmt: skip
    config = BatchConfig(prompts="x")
    items = faults = 0
    for number in range(1000):
        data = b"".join(draw.choices(pieces, k=draw.randint(0, 30)))
        found = parse(data, config, as_json=number % 2 == 0)
        items += len(found.lines)
        faults += len(found.faults)
        rows = data.split(b"\n")
        numbers = [line.number for line in found.lines] + [n for n, _ in found.faults]
        assert len(set(numbers)) == len(numbers)
        assert all(1 <= n <= len(rows) and rows[n - 1].strip() for n in numbers)
        named: list[Any] = [text for _, text in found.faults]
        assert all(text and "\n" not in text and len(text) < 400 for text in named)
    assert items > 100
    assert faults > 100
