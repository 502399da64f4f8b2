"""The command line `fourreal VERB`: finds the verb, parses its options, turns a user's mistake into one line.

Each verb is a frozen dataclass of options with a method `run`, owned by the module that does the work, and imported only
when it is called, so that `fourreal --help` stays fast. The exit codes are those of `errors.py`. Errors that are no user's
mistake show their traceback; with FOURREAL_TRACEBACK=1 all do.
"""

import _thread
import contextlib
import difflib
import functools
import glob
import importlib
import importlib.util
import os
import select
import signal
import sys
import threading
from typing import Any

from fourreal.errors import EXPECTED, NO_SPACE, exit_code
from fourreal.host.huge_pages import take_huge_pages
from fourreal.options import read_options, take_extensions

# verb -> (module, dataclass, one line of help)
VERBS = {
    "train": ("fourreal.training.command", "Train", "train a model from a config file: fourreal train configs/nano.py"),
    "sample": ("fourreal.sampling.command", "Sample", "sample a grid from videos and pictures"),
    "evaluate": ("fourreal.evaluation.command", "Evaluate", "score checkpoints and baselines on grids, with a report"),
    "ablate": (
        "fourreal.evaluation.ablation.command",
        "Ablate",
        "compare fusions: fourreal ablate configs/shift_and_roll.py",
    ),
    "export": ("fourreal.sampling.export", "Export", "write a sampled grid for nerfstudio, D-NeRF or COLMAP"),
    "convert wan": (
        "fourreal.checkpoints.command",
        "ConvertWan",
        "make a base of a pretrained Wan transformer, or go back",
    ),
    "encode": ("fourreal.data.encode", "Encode", "turn a data set of pixels into latents and text features"),
    "embed-text": (
        "fourreal.text.command",
        "EmbedText",
        "features of prompts, for training and sampling: fourreal embed-text PROMPTS.txt --encoder FOLDER",
    ),
    "plan": ("fourreal.planning.plan", "Plan", "what training needs on TPUs or GPUs that are not there"),
    "cameras convert": ("fourreal.media.cameras_command", "Convert", "write a camera file in another form"),
    "cameras check": (
        "fourreal.media.cameras_command",
        "Check",
        "say what a camera file holds: convention, unit, lenses",
    ),
    "cameras plot": ("fourreal.media.cameras_command", "Plot", "draw the cameras of a file"),
    "cameras estimate": ("fourreal.media.cameras_command", "Estimate", "find the cameras of an orbit, by COLMAP"),
    "data captions": ("fourreal.data.encode", "Captions", "write a caption for each scene of rendered data"),
    "data build": ("fourreal.data.render.pack", "BuildPack", "build the pack of animated assets from game data"),
    "data render": ("fourreal.data.render.command", "Render", "render 4D grids and write them as ArrayRecord"),
}

USAGE = "usage: fourreal VERB [OPTIONS]    (fourreal VERB --help shows the options of one)\n\nverbs:\n" + "\n".join(
    f"  {verb:<15} {line}" for verb, (_, _, line) in VERBS.items()
)
USAGE += (
    "\n\n--extensions MODULE ... goes with every verb: conditions, fusions, samplers, codecs and sources of your own"
)


def main(argv: list[str] | None = None, verb: str | None = None) -> None:
    """Runs one verb (`train.py` and `sample.py` fix theirs); exits by an error with a code of `errors.py`.

    Where stdout is a pipe that nobody reads any more, as in `fourreal --help | head -1`, it ends in silence, as by SIGPIPE.
    """
    try:
        try:
            _main(argv, verb)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not any(map(is_unread, (sys.stdout, sys.stderr))):
            raise
        for stream in filter(is_unread, (sys.stdout, sys.stderr)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for Python's own flush at the end
        sys.exit(128 + signal.SIGPIPE)


def _main(argv: list[str] | None, verb: str | None) -> None:
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
                    f"fourreal {known:<15} {line}" for known, (*_, line) in VERBS.items() if known.startswith(argv[0])
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
        _interrupted(verb, script)
    except EXPECTED as error:
        if isinstance(error, BrokenPipeError) and any(map(is_unread, (sys.stdout, sys.stderr))):
            raise
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if os.environ.get("FOURREAL_TRACEBACK") or (missing or "").startswith("fourreal"):
            raise
        message = " ".join(str(error).split())
        if isinstance(error, OSError) and error.strerror and error.errno in NO_SPACE:
            message = f"{error.strerror}: free some space, or name another folder to write to"
        if missing:
            extras = ".[train,render,eval]"
            message = f"the package '{missing}' is not installed: make setup, or pip install -e '{extras}', brings it"
        fail(f"fourreal {verb}", message, exit_code(error))
    except Exception as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):  # a Ctrl-C that fell into compiled code
            raise
        _interrupted(verb, script)


def _interrupted(verb: str, script: bool) -> None:
    """Says so and exits."""
    print(f"fourreal {verb}: interrupted", file=sys.stderr, flush=True)
    if script:  # without tearing down: a program that XLA still compiles in another thread would crash that
        sys.stdout.flush()
        os._exit(130)
    sys.exit(130)


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


def parse(verb: str, argv: list[str]):
    """The verb's options from the command line; a verb with a syntax of its own has a `parse`."""
    module, name, _ = VERBS[verb]
    options = getattr(importlib.import_module(module), name)
    parse_options = getattr(options, "parse", None) or functools.partial(read_options, options)
    return parse_options(take_extensions(argv), f"fourreal {verb}")


def is_unread(stream: Any) -> bool:
    """Whether the stream is a pipe whose reader is gone."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


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
