"""The command line `fourreal VERB`: finds the verb, parses its options, turns bad input into one line and exit code 2.

Each verb is a frozen dataclass of options with a method `run`, owned by the module that does the work, and imported only
when it is called, so that `fourreal --help` stays fast. FOURREAL_TRACEBACK=1 shows where an error came from.
"""

import difflib
import importlib
import os
import sys

# verb -> (module, dataclass, one line of help)
VERBS = {
    "train": ("fourreal.training.command", "Train", "train a model from a config file: fourreal train configs/nano.py"),
    "sample": ("fourreal.sampling.command", "Sample", "sample a grid from videos and pictures"),
    "data build": ("fourreal.data.pack", "BuildPack", "build the pack of animated assets from game data"),
    "data render": ("fourreal.data.render_command", "Render", "render 4D grids and write them as ArrayRecord"),
}

USAGE = "usage: fourreal VERB [OPTIONS]    (fourreal VERB --help shows the options of one)\n\nverbs:\n" + "\n".join(
    f"  {verb:<12} {line}" for verb, (_, _, line) in VERBS.items()
)


def main(argv: list[str] | None = None, verb: str | None = None) -> None:
    """Runs one verb (`train.py` and `sample.py` fix theirs) and exits: 0 done, 1 broken loss, 2 bad input, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
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
    try:
        parse(verb, argv).run()
    except KeyboardInterrupt:
        print(f"fourreal {verb}: interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if os.environ.get("FOURREAL_TRACEBACK") or (missing or "").startswith("fourreal"):
            raise
        message = " ".join(str(error).split())
        if missing:
            message = (
                f"the package '{missing}' is not installed: make setup, or pip install -e '.[train,render]', brings it"
            )
        fail(f"fourreal {verb}", message, code=1 if isinstance(error, FloatingPointError) else 2)


def parse(verb: str, argv: list[str]):
    """The verb's options from the command line; a verb with a syntax of its own has a `parse`."""
    module, name, _ = VERBS[verb]
    options = getattr(importlib.import_module(module), name)
    if hasattr(options, "parse"):
        return options.parse(argv, f"fourreal {verb}")
    import tyro

    return tyro.cli(options, args=argv, prog=f"fourreal {verb}")


def fail(program: str, message: str, code: int = 2) -> None:
    """Prints one line to stderr and exits."""
    print(f"{program}: error: {message}", file=sys.stderr)
    sys.exit(code)
