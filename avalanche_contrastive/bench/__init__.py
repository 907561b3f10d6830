"""Run the methods and Avalanche's baselines, and turn the runs into tables and plots: ``python -m benchmarks --help``.

Only the modules that a worker process needs (baselines, ours, models, plugins, streams, runs) import torch and
Avalanche; listing, tables and plots start at once.
"""
