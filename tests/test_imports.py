"""Imports are quick, light, and touch no device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("tensorflow", "torch", "transformers", "tensorflow_datasets", "grain", "orbax", "panda3d")


def run(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


REPORT = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


def test_help_of_the_command_line_names_the_verbs_and_is_quick_since_it_imports_no_jax():
    code = (
        "import sys\nfrom fourreal.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    print([name for name in ('jax', 'flax') if name in sys.modules])"
    )
    text = run("-c", code)
    assert "train" in text and "sample" in text
    assert text.splitlines()[-1] == "[]"


def test_importing_the_grid_model_imports_nothing_heavy():
    assert run("-c", f"from fourreal.models import GridDiT\n{REPORT}").strip() == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "import fourreal.cli, contextlib, io\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): fourreal.cli.main(['--help'])",
        "import fourreal.training.config, fourreal.diffusion.samplers, fourreal.data.batches",
    ],
)
def test_help_and_the_library_import_nothing_heavy(code):
    assert run("-c", f"{code}\n{REPORT}").strip() == "[]"


def test_training_imports_neither_tensorflow_nor_torch():
    code = "import fourreal.training.loop, sys; print([n for n in ('tensorflow', 'torch') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_everything_touches_no_device():
    code = (
        "import fourreal, fourreal.models, fourreal.diffusion.samplers, fourreal.training.config, fourreal.training.loop\n"
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
    ("verb", "system", "asked", "found"),
    [
        ("train", "always [madvise] never", "", "glibc.malloc.hugetlb=1"),
        (
            "train",
            "always [madvise] never",
            "glibc.malloc.arena_max=2",
            "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1",
        ),
        ("train", "always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("train", "[always] madvise never", "", ""),
        ("train", None, "", ""),
        ("ablate", "always [madvise] never", "", "glibc.malloc.hugetlb=1"),
        ("sample", "always [madvise] never", "", ""),
    ],
)
def test_training_starts_again_with_huge_pages_where_they_are_given_to_who_asks(tmp_path, verb, system, asked, found):
    if system:
        (tmp_path / "enabled").write_text(system)
    (tmp_path / "script.py").write_text(
        "import json, os\n"
        "from fourreal import cli\n"
        "from fourreal.host import huge_pages\n"
        "huge_pages.HUGE_PAGES = 'enabled'\n"
        "cli.parse = lambda *given: print(json.dumps([os.environ['GLIBC_TUNABLES'], *given]), flush=True) or os._exit(0)\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py", verb, "--out", "a b"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": asked},
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == [found, verb, ["--out", "a b"]], done.stderr
