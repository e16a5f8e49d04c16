"""The interface in a browser: text to 3D, distillation, what was made, and the same as an API.

`serve` is where it begins; it and everything it imports compute nothing and import no torch.
Whatever computes is a process of its own: the workers of `sds3d.jobs`, and commands of the command
line for the teacher's pictures and for students.
"""

import os

# Before gradio is imported anywhere: no word of this leaves the machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
