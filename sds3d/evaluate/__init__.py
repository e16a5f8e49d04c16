"""How well meshes match their prompts, judged against exact renders of the toybox world.

`config` holds the options, `run.evaluate` does the work. The only part of the application that
knows the world's shapes.
"""
