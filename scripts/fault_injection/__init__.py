"""Faults, put into the program on purpose, and what became of the user's results: a file for each.

A fault is a function from `Trials` to a `Tally`; `table.py` lists them all. They stand beside the
program and not in it: runs are made by the program's own pipeline and command line, with a teacher
and an export that take milliseconds (`cheap.py`), in processes that are forked from one that has
imported everything (`processes.py`). `scripts/faults.py` prints the counts, the tests run a short
form of each.
"""
