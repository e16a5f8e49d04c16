"""Which class each --method is, for what one wants to know of it before it is made.

`sds3d.supervision` makes them; what a method is like stands in its own class.
"""

from __future__ import annotations

from core.distillation.score.cds import CDS
from core.distillation.score.csd import CSD
from core.distillation.score.hifa import HiFA
from core.distillation.score.ism import ISM
from core.distillation.score.nfsd import NFSD
from core.distillation.score.reconstruction import Reconstruction
from core.distillation.score.sdi import SDI
from core.distillation.score.sds import SDS, ScoreDistillation
from core.distillation.score.sjc import SJC
from core.distillation.score.vsd import VSD

from .optimize_config import MethodName

__all__ = ["METHOD_CLASSES"]

METHOD_CLASSES: dict[MethodName, type[ScoreDistillation]] = {
    "sds": SDS,
    "sjc": SJC,
    "csd": CSD,
    "ism": ISM,
    "sdi": SDI,
    "nfsd": NFSD,
    "reconstruction": Reconstruction,
    "hifa": HiFA,
    "cds": CDS,
    "vsd": VSD,
}
