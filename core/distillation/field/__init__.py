"""Students that map x_t to x_s: one method a file."""
