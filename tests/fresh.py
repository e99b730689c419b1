"""Python code in a process of its own that has torch already: importing it takes two seconds."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
"""It imports torch, nothing else of ours, and each process is a fork of it."""
SERVER.set_forkserver_preload(["torch"])


def run_code(
    code: str, environment: Mapping[str, str] | None = None, timeout: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """As ``python -c code`` with this environment, or this process's, in an empty namespace."""
    given = dict(os.environ if environment is None else environment)
    with tempfile.TemporaryDirectory() as folder:
        texts = [Path(folder) / name for name in ("out", "err")]
        process = SERVER.Process(target=_run, args=(code, given, *map(str, texts)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(code, timeout)
        out, err = (path.read_text() if path.exists() else "" for path in texts)
        return subprocess.CompletedProcess(code, process.exitcode or 0, out, err)


def run_script(
    script: Path, *arguments: str | Path, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """As ``python script arguments`` in a folder."""
    given = [str(script), *map(str, arguments)]
    return run_code(
        f"import os, runpy, sys\n"
        f"os.chdir({str(folder or Path.cwd())!r})\n"
        f"sys.argv, sys.path[0] = {given!r}, {str(script.parent)!r}\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )


def _run(code: str, environment: dict[str, str], out: str, err: str) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    places = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    installed = [place for place in sys.path if "site-packages" in place or _is_pythons(place)]
    sys.path[:] = ["", *places, *installed]
    names: dict[str, Any] = {"__name__": "__main__"}
    status = 0
    try:
        exec(compile(code, "<string>", "exec"), names)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_pythons(place: str) -> bool:
    return place.startswith((sys.prefix, sys.base_prefix))
