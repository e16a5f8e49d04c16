"""Text to textured 3D mesh by score distillation."""

import os

# Every way in imports this package before torch, and GNU's OpenMP reads its environment once, when
# torch loads it. Left to itself it lets torch's threads spin for a while after each parallel
# region, on the cores where Numba's threads run next: the hash grid then takes twice its time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
