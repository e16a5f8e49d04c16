"""Turn a folder's pickled weights into safetensors: python -m core.teachers.convert_pickles FOLDER

Reads with torch's restricted unpickler, which rebuilds tensors and plain containers and refuses
everything else. The pickles stay; nothing reads them again.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

__all__ = ["convert", "main"]


def convert(folder: Path) -> list[Path]:
    """Write the safetensors of every `*.bin` in the components of `folder`; returns what it wrote.

    A file that holds anything but named tensors raises ValueError.
    """
    written = []
    for pickled in sorted(folder.glob("*/*.bin")):
        target = _renamed(pickled)
        try:
            tensors = torch.load(pickled, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{pickled} holds more than weights, or is damaged") from error
        if not isinstance(tensors, dict) or not all(
            isinstance(tensor, torch.Tensor) for tensor in tensors.values()
        ):
            raise ValueError(f"{pickled} holds something else than named tensors")
        # Copies: safetensors refuses tensors that share memory.
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, target, {"format": "pt"})
        written.append(target)
    for index in sorted(folder.glob("*/*.bin.index*.json")):
        document = json.loads(index.read_text(encoding="utf-8"))
        names = document["weight_map"].items()
        document["weight_map"] = {k: _renamed(index.with_name(v)).name for k, v in names}
        target = _renamed(index)
        target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        written.append(target)
    return written


def _renamed(path: Path) -> Path:
    """The name that `x.bin` has as safetensors: transformers drops a leading `pytorch_`."""
    name = path.name.replace(".bin", ".safetensors")
    return path.with_name(name.removeprefix("pytorch_"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder in the diffusers format")
    folder: Path = parser.parse_args(arguments).folder
    try:
        written = convert(folder)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if not written:
        print(f"{folder} has no component with a .bin file", file=sys.stderr)
        return 2
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
