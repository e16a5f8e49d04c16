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
        seed=int(value(words, "--seed")),
        out=Path(value(words, "--out")),
    )
    if config.method == "wrong":
        say(event="failure", text="wrong does not go with this ground", exit_code=2)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    while True:
        for step in range(0, config.steps + 1, max(1, config.steps // 4)):
            losses = {"student": 1 / (1 + step)}
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
    config.folder.mkdir(parents=True)
    for name in ("samples.png", "history.png"):
        Image.new("RGB", (8, 8), (200, 30, 30)).save(config.folder / name)
    figures = {"sliced_wasserstein": 0.1 if config.method == "meanflow" else 0.2}
    (config.folder / "student.json").write_text(json.dumps({"measured": figures}))
    say(event="distilled", folder=str(config.folder), figures=figures)
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
