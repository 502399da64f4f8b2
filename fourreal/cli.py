"""The command line `fourreal VERB`: finds the verb, parses its options, turns bad input into one line and exit code 2.

Each verb is a frozen dataclass of options with a method `run`, owned by the module that does the work, and imported only
when it is called, so that `fourreal --help` stays fast. FOURREAL_TRACEBACK=1 shows where an error came from.
"""

import _thread
import contextlib
import difflib
import errno
import functools
import glob
import importlib
import importlib.util
import io
import os
import sys
import threading
from typing import Any, TypeVar

T = TypeVar("T")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
LOST = 3  # exit code of what starting all processes of a training again may mend

# verb -> (module, dataclass, one line of help)
VERBS = {
    "train": ("fourreal.training.command", "Train", "train a model from a config file: fourreal train configs/nano.py"),
    "sample": ("fourreal.sampling.command", "Sample", "sample a grid from videos and pictures"),
    "evaluate": ("fourreal.evaluation.command", "Evaluate", "score checkpoints and baselines on grids, with a report"),
    "ablate": ("fourreal.evaluation.ablation", "Ablate", "compare fusions: fourreal ablate configs/ablation.py"),
    "plan": ("fourreal.parallel.plan", "Plan", "what training needs on TPUs or GPUs that are not there"),
    "data build": ("fourreal.data.pack", "BuildPack", "build the pack of animated assets from game data"),
    "data render": ("fourreal.data.render_command", "Render", "render 4D grids and write them as ArrayRecord"),
}

USAGE = "usage: fourreal VERB [OPTIONS]    (fourreal VERB --help shows the options of one)\n\nverbs:\n" + "\n".join(
    f"  {verb:<12} {line}" for verb, (_, _, line) in VERBS.items()
)


def main(argv: list[str] | None = None, verb: str | None = None) -> None:
    """Runs one verb (`train.py` and `sample.py` fix theirs) and exits: 0 done, 1 broken loss, 2 bad input or a failed
    read or write (a full disk, say), 3 what starting a training again may mend, 130 interrupted."""
    pass_over_libtpu()
    script, argv = argv is None, list(sys.argv[1:] if argv is None else argv)
    if script:
        sys.unraisablehook = interrupt_again
    with contextlib.suppress(AttributeError):  # a stream of the caller's own
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    if verb is None:
        if argv[:1] in ([], ["-h"], ["--help"]):
            print(USAGE)
            sys.exit(0 if argv else 2)
        if argv[0] == "--version":
            from fourreal import __version__

            print(f"fourreal {__version__}")
            sys.exit(0)
        words = 2 if any(known.startswith(argv[0] + " ") for known in VERBS) else 1
        if words == 2 and argv[1:2] in ([], ["-h"], ["--help"]):
            print(
                "\n".join(
                    f"fourreal {known:<12} {line}" for known, (*_, line) in VERBS.items() if known.startswith(argv[0])
                )
            )
            sys.exit(0 if argv[1:] else 2)
        verb, argv = " ".join(argv[:words]), argv[words:]
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            fail("fourreal", f"there is no verb '{verb}'{hint} (the verbs are {', '.join(VERBS)})")
    if script and verb in ("train", "ablate"):
        take_huge_pages()
    try:
        parse(verb, argv).run()
    except KeyboardInterrupt:
        print(f"fourreal {verb}: interrupted", file=sys.stderr, flush=True)
        if script:  # without tearing down: a program that XLA still compiles in another thread would crash that
            sys.stdout.flush()
            os._exit(130)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if os.environ.get("FOURREAL_TRACEBACK") or (missing or "").startswith("fourreal"):
            raise
        message = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            message = f"{error.strerror}: free some space, or name another folder to write to"
        if missing:
            extras = ".[train,render,eval]"
            message = f"the package '{missing}' is not installed: make setup, or pip install -e '{extras}', brings it"
        fail(f"fourreal {verb}", message, exit_code(error))


def exit_code(error: BaseException) -> int:
    """What a process ends with by an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, TimeoutError) or stops_training(error):
        return LOST
    return 2 if isinstance(error, (ValueError, OSError, ModuleNotFoundError)) else 1


def stops_training(error: BaseException) -> bool:
    """Whether it is a failed write with which a training stopped, as its line says; a full disk needs somebody to mend it."""
    text = str(error) if isinstance(error, OSError) else ""
    return "--resume goes on" in text and not any(os.strerror(number) in text for number in NO_SPACE)


def pass_over_libtpu() -> None:
    """Where no accelerator is, keeps JAX from asking an installed libtpu for one: it prints a page of errors and logs to /tmp.

    `plan` needs only its compiler, in another process. What the user has set stays, and so does a machine with a TPU or GPU.
    """
    devices = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")
    asked = "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None
    if not asked and not any(glob.glob(pattern) for pattern in devices):
        os.environ["JAX_PLATFORMS"] = "cpu"
        if "jax" in sys.modules:  # it has read the variable
            sys.modules["jax"].config.update("jax_platforms", "cpu")


def take_huge_pages() -> None:
    """Where Linux gives huge pages to programs that ask, starts this one again with glibc asking for large allocations.

    XLA allocates the temporaries of a step anew each time; in small pages that takes up to a tenth of a step on CPUs. glibc
    reads the setting at the start only. What the user has set stays.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or not os.path.exists(HUGE_PAGES):
        return
    with open(HUGE_PAGES) as file:
        left_to_programs = "[madvise]" in file.read()
    if left_to_programs:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def parse(verb: str, argv: list[str]):
    """The verb's options from the command line; a verb with a syntax of its own has a `parse`."""
    module, name, _ = VERBS[verb]
    options = getattr(importlib.import_module(module), name)
    parse_options = getattr(options, "parse", None) or functools.partial(read_options, options)
    return parse_options(argv, f"fourreal {verb}")


def read_options(options: type[T], argv: list[str], prog: str, **settings: Any) -> T:
    """The dataclass `options` from the command line; ValueError says in one line what tyro draws as a box of several."""
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(options, args=argv, prog=prog, **settings)
    except SystemExit as stop:
        if not stop.code:
            raise
    rows = [row.strip("│|").strip() for row in box.getvalue().splitlines()[1:-1]]
    sections = " ".join(row if set(row) - set("─-") else ";" for row in rows)
    raise ValueError(sections.replace(" ;", ";"))


def interrupt_again(unraisable: Any) -> None:
    """A Ctrl-C that falls into a callback, where Python prints and forgets it, comes again a moment later."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def fail(program: str, message: str, code: int = 2) -> None:
    """Prints one line to stderr and exits."""
    print(f"{program}: error: {message}", file=sys.stderr)
    sys.exit(code)
