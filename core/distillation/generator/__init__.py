"""Students that map z to x: one method a file."""
