"""Real database servers for tests and benchmarks: installed by ``setup.py``, started by ``launch.py``."""
