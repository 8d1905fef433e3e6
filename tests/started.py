"""Processes that begin where torch and crovca are imported already: an import takes seconds, a fork does not.

``Started`` has the manners of ``subprocess.Popen``. A server that does nothing but import forks a process for each; so
they can be killed, and have none of the locks and threads of the tests.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
import threading
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# Not crovca.service: prometheus-client reads the environment when it is imported.
# torch._dynamo is what the first optimizer of a process imports; the rest is of encoders, and may be missing.
IMPORTED = [
    "crovca.cli.main", "crovca.hasher", "crovca.archive.archive", "crovca.servers.push", "torch._dynamo",
    "peft", "transformers.models.vit.modeling_vit", "transformers.models.clip.modeling_clip",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers",
]  # fmt: skip
CONTEXT.set_forkserver_preload(IMPORTED)


class Started:
    """A process: ``python ARGUMENTS``, which are ``-m MODULE ...``, or a script's path and what it is given.

    ``forget`` names packages that it is to import itself.
    """

    def __init__(self, arguments, *, env=None, cwd=None, forget=()):
        (stdout, to_stdout), (stderr, to_stderr) = (CONTEXT.Pipe(duplex=False) for _ in range(2))
        variables = dict(os.environ if env is None else env)
        given = ([*map(str, arguments)], variables, str(cwd or Path.cwd()), forget, to_stdout, to_stderr)
        CONTEXT.set_forkserver_preload(IMPORTED)  # again: embedding in several processes asks for less
        self._process = CONTEXT.Process(target=_begin, args=given)
        self._process.start()
        self.pid = self._process.pid
        self.stdout, self.stderr = (os.fdopen(os.dup(one.fileno()), encoding="utf-8") for one in (stdout, stderr))
        for one in (stdout, to_stdout, stderr, to_stderr):
            one.close()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=500):
        self._process.join(timeout)
        assert self.returncode is not None, "it goes on"
        self.stdout.close()
        self.stderr.close()
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def communicate(self, timeout=500):
        """What it says, on standard output and as errors, until its end."""
        said = {}
        pipes = {"stdout": self.stdout, "stderr": self.stderr}
        readers = [threading.Thread(target=lambda name=name: said.update({name: pipes[name].read()})) for name in pipes]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
        self.wait(timeout)
        return said["stdout"], said["stderr"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()


def ended(arguments, **options):
    """Run it to its end: (status, standard output, errors)."""
    process = Started(arguments, **options)
    said = process.communicate()
    return process.returncode, *said


def _begin(arguments, variables, folder, forget, stdout, stderr):
    for number, name, pipe in ((1, "stdout", stdout), (2, "stderr", stderr)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", buffering=1, closefd=False))
    for name in [name for name in sys.modules if name.partition(".")[0] in forget]:
        del sys.modules[name]
    # What it starts, the same server forks: it would start one of its own, which imports everything again.
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    begun = arguments[1:] if arguments[0] == "-m" else arguments
    sys.argv = begun
    sys.path[:0] = [folder, *filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))]
    if begun is arguments:
        runpy.run_path(begun[0], run_name="__main__")
    else:
        sys.modules.pop(begun[0], None)  # runpy warns of a module that is there
        runpy.run_module(begun[0], run_name="__main__", alter_sys=True)
