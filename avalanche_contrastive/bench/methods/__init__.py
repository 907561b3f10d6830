"""What can be run: the three methods, Avalanche's baselines, networks, and builders of your own."""
