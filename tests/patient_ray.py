"""python patient_ray.py SCRIPT: Ray waits 30 seconds for its own start, which a busy machine may not keep to."""

import runpy
import sys
import time

SECONDS = 400
ENVIRONMENT = {"RAY_worker_register_timeout_seconds": str(SECONDS)}  # it starts others in their place after 60


def patient(get_node):
    """``ray._private.services.get_node``, which is asked whether the node is there, until it is."""

    def get(*arguments):
        end = time.monotonic() + SECONDS
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    return get


if __name__ == "__main__":
    from ray._private import services

    services.get_node = patient(services.get_node)
    runpy.run_path(sys.argv[1], run_name="__main__")
