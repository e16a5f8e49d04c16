"""Distillation of frozen denoisers into students."""
