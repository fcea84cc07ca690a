"""Benchmarks of isostep beside the optimizers of other frameworks: `python -m benchmarks`.

The parent process spawns one worker for each set of frameworks that can share a process; a worker
steps isostep and its peers in turns and prints what it measured. Nothing here is a test.
"""
