"""The command line in milliseconds, for the commands that the app starts: `distill`, `preview`.

Prints events as `sds3d ... --json` does. A method named "hangs" trains until it is told to end.
"""

import json
import signal
import sys
import time
from pathlib import Path

from PIL import Image

from sds3d.distill.run import DistillConfig


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def distill(words: list[str]) -> int:
    config = DistillConfig(
        method=words[1],
        teacher=value(words, "--teacher"),
        steps=int(value(words, "--steps")),
        nfe=int(value(words, "--nfe")),
        batch=int(value(words, "--batch")),
        learning_rate=float(value(words, "--learning-rate")),
        seed=int(value(words, "--seed")),
        picture_every=float(value(words, "--picture-every")),
        out=Path(value(words, "--out")),
    )
    if config.method == "wrong":
        say(event="failure", text="wrong does not go with this ground", exit_code=2)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    assert config.picture_every > 0
    config.folder.mkdir(parents=True, exist_ok=True)
    for name in ("teacher.png", "teacher-few.png"):
        Image.new("RGBA", (8, 8), (30, 200, 30, 90)).save(config.folder / name)
    while True:
        for step in range(0, config.steps + 1, max(1, config.steps // 4)):
            losses = {"student": 1 / (1 + step)}
            Image.new("RGBA", (8, 8), (step % 256, 30, 30, 90)).save(config.folder / "student.png")
            say(
                event="distillpicture",
                stage="distil",
                step=step,
                steps=config.steps,
                to_teacher=None if step == 0 else 2 / step,
            )
            say(
                event="distillstep",
                stage="distil",
                step=step,
                steps=config.steps,
                losses=losses,
                eta_seconds=1.0,
            )
        if config.method != "hangs":
            break
        time.sleep(0.05)
    for name in ("samples.png", "history.png"):
        Image.new("RGB", (8, 8), (200, 30, 30)).save(config.folder / name)
    course = {"losses": {"student": {"1": 0.5, "2": 0.25}}, "distance": {"1": 0.75, "2": 0.375}}
    (config.folder / "history.json").write_text(json.dumps(course))
    figures = {"sliced_wasserstein": 0.1 if config.method == "meanflow" else 0.2}
    teacher = [{"nfe": config.nfe, "sliced_wasserstein": 0.6}, {"nfe": 64, "to_teacher": 0.0}]
    names = ("method", "steps", "nfe", "batch", "learning_rate", "seed")
    card = {name: getattr(config, name) for name in names}
    card |= {"ground": config.teacher, "measured": figures, "teacher": teacher}
    (config.folder / "student.json").write_text(json.dumps(card))
    say(event="distilled", folder=str(config.folder), figures=figures, teacher=teacher)
    return 0


def preview(words: list[str]) -> int:
    prompt = words[words.index("--") + 1]
    if "mushroom" not in prompt:
        say(event="failure", text=f"nothing known in {prompt!r}; nearest: mushroom", exit_code=2)
        return 2
    path = Path(value(words, "--out")) / "preview.png"
    Image.new("RGB", (8, 8), (200, 30, 30)).save(path)
    say(event="warning", text="never seen '<b>purplish</b>'")
    say(event="preview", path=str(path))
    return 0


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--json"]
    assert "--json" in sys.argv
    sys.exit({"distill": distill, "preview": preview}[given[0]](given))
