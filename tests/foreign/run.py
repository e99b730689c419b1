"""Run other people's tests without and with ``autogemm.override``; see the README beside this."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACES = (HERE.parent.parent, HERE.parent, HERE)

# Parts of transformers' tests that its source distribution leaves out, and the mixin names.
MISSING = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
}


def transformers_tests(directory: Path) -> Path:
    """Transformers' own ``tests/`` of the installed version, completed by what is missing."""
    version = importlib.metadata.version("transformers")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
         f"transformers=={version}"],
        cwd=directory, check=True,
    )  # fmt: skip
    with tarfile.open(directory / f"transformers-{version}.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    tests = directory / f"transformers-{version}" / "tests"
    for name, text in MISSING.items():
        (tests / name).parent.mkdir(exist_ok=True)
        (tests / name).write_text(text)
    return Path(shutil.copy(HERE / "transformers_models.py", tests / "test_models.py"))


def run(path: Path, strategy: str) -> str:
    """The last lines that pytest prints."""
    places = os.pathsep.join([*map(str, PLACES), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-W", "ignore", str(path)]
    done = subprocess.run(
        command,
        cwd=path.parent.parent,
        env={**os.environ, "PYTHONPATH": places, "AUTOGEMM_FOREIGN": strategy},
        capture_output=True,
        text=True,
    )
    kept = ("FAILED", "ERROR", "autogemm:")
    lines = done.stdout.splitlines() or done.stderr.splitlines()
    return "\n".join([line for line in lines[:-1] if line.startswith(kept)] + lines[-1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", default="matmul_axpby", help="what serves every product")
    parser.add_argument("--torch-only", action="store_true", help="nothing to download")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        paths = [HERE / "torch_operators.py"]
        if not options.torch_only:
            paths.append(transformers_tests(Path(directory)))
        for path in paths:
            for strategy in ("none", options.strategy):
                print(f"{path.stem}, {strategy}:\n{run(path, strategy)}\n", flush=True)


if __name__ == "__main__":
    main()
