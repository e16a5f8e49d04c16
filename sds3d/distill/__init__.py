"""Distillation as a program: proving grounds, the catalogue of methods, students on disk."""
