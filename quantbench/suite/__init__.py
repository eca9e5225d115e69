"""The benchmarks that ``quantbench run`` runs and ``bench/`` imports: one pytest-benchmark entry per scenario and phase."""
