"""A radiance field and its renderer; nothing here knows of text or diffusion."""
