"""Sampling without training, one solver a file."""
