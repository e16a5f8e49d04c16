"""Score distillation: gradients on any differentiable image."""
