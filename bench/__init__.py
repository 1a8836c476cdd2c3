"""What is measured and simulated, not tested: `python -m bench.run` and its neighbours."""
