"""The procedural world that the embedded teacher is trained on and measured against.

Only the training script and the evaluation import this package: a run from prompt to mesh never
sees these shapes, it has nothing but the teacher's weights.
"""
