"""Stands in for train.py: notes its arguments, begins the run, and then does what CLOUD/training says.

`wait`: trains until a SIGTERM, saves and ends with 0; `finish`: ends with 0; `CODE MESSAGE`: fails. Where there is a
`training of MACHINE`, that one does what it says.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

cloud = Path(os.environ["CLOUD"])
own = cloud / f"training of {Path.home().name}"
behaviour = (own if own.exists() else cloud / "training").read_text()
run = Path(sys.argv[sys.argv.index("--out") + 1])
if behaviour == "wait":
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
with (Path.home() / "arguments.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\n")
if behaviour in ("wait", "finish"):
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text("{}")
if behaviour == "wait":
    deadline = time.monotonic() + 60
    while not asked and time.monotonic() < deadline:
        time.sleep(0.05)
    print("weights: saved; stopped, go on with --resume")
elif behaviour != "finish":
    code, message = behaviour.split(" ", 1)
    print(message, file=sys.stderr)
    sys.exit(int(code))
