"""Train the digits ground's teacher and classifier (about two minutes on two cores).

python scripts/train_digits_teacher.py --out assets/digits
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch.nn import functional as F

from core.denoising import DenoiserTraining
from core.prediction import Parametrisation
from core.schedule import FlowSchedule
from core.training import History, Stage, train
from sds3d.distill.digits import T_MIN, DigitClassifier, digits, make_network, save_module


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where to, and how long."""

    out: Path = Path("assets/digits")
    steps: int = 8000
    classifier_steps: int = 1500
    seed: int = 0


def train_classifier(options: Options) -> DigitClassifier:
    """Trained on the train split with small shifts and noise; says its accuracy on the other."""
    train_set, test_set = digits()
    torch.manual_seed(options.seed)
    classifier = DigitClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.02)
    generator = torch.Generator().manual_seed(options.seed)
    for step in range(options.classifier_steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / options.classifier_steps)
        index = torch.randint(len(train_set.images), (128,), generator=generator)
        noise = torch.randn(128, 64, generator=generator)
        loss = F.cross_entropy(
            classifier(train_set.images[index] + 0.1 * noise), train_set.labels[index]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = classifier(test_set.images).argmax(1) == test_set.labels
    print(f"classifier: {float(right.float().mean()):.1%} of the test split", file=sys.stderr)
    return classifier


def main(options: Options) -> None:
    save_module(train_classifier(options), options.out / "classifier.safetensors")
    train_set, _ = digits()
    torch.manual_seed(options.seed)
    method = DenoiserTraining(
        make_network(),
        FlowSchedule(),
        Parametrisation.X0,
        train_set.draw,
        steps=options.steps,
        learning_rate=1e-3,
        t_min=T_MIN,
        average_decay=0.999,
    )

    def progress(stage: Stage, history: History) -> bool:
        if history.step % 500 == 0:
            recent = history.losses["network"][-500:]
            print(
                f"teacher: step {history.step}/{stage.steps}, loss {sum(recent) / 500:.4f}, "
                f"{history.seconds:.0f} s",
                file=sys.stderr,
            )
        return False

    train(method, seed=options.seed, progress=progress)
    save_module(method.average, options.out / "teacher.safetensors")


if __name__ == "__main__":
    main(tyro.cli(Options))
