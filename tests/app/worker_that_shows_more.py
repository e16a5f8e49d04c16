"""The program's own worker, which spends half its time on pictures: a short run shows several.

Run as a script with the arguments of `python -m sds3d.jobs.worker`.
"""

import functools
import sys
from unittest import mock

from sds3d.jobs import running
from sds3d.jobs.previews import Ration
from sds3d.jobs.worker import main

if __name__ == "__main__":
    with mock.patch.object(running, "Ration", functools.partial(Ration, seconds=0.5, share=0.5)):
        sys.exit(main())
