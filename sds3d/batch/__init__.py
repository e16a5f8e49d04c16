"""Many prompts at once, on top of the jobs: a list is read, its items are queued and reported."""
