"""tpu.sh against a fake gcloud: what it would run, what it runs, and what it says when the cloud says no."""

import json
import shlex
import shutil
import subprocess

import pytest

VERBS = ["create", "setup", "launch", "status", "logs", "profile", "stop", "watch", "list", "delete"]
PLACE = "--project=my-project --zone=us-west4-a"
SSH = f"gcloud compute tpus queued-resources ssh pod {PLACE} --node=all --worker=all"
WORKER = "bash ~/fourreal/code/tpu_scripts/worker.sh"
CREATE = (
    f"gcloud compute tpus queued-resources create pod {PLACE} --accelerator-type=v5litepod-16"
    " --runtime-version=v2-alpha-tpuv5-lite --node-id=pod --spot --valid-until-duration=24h"
)
PROJECT = [
    "gcloud services list --enabled --project=my-project --filter=config.name=tpu.googleapis.com"
    " '--format=value(config.name)'",
    "gcloud storage buckets describe gs://my-bucket --raw '--format=value(hierarchicalNamespace.enabled)'",
]
UPLOAD = [
    'cd "$(mktemp -d)"',
    "git -C 'ROOT' ls-files -z --cached --others --exclude-standard >files",
    "tar -C 'ROOT' --null -T - -czf code.tar.gz <files",
    "gcloud storage cp code.tar.gz gs://my-bucket/code/pod.tar.gz --project=my-project",
]
INSTALL = (
    f"{SSH} '--command=set -e; mkdir -p ~/fourreal; rm -rf ~/fourreal/incoming; mkdir ~/fourreal/incoming;"
    " gcloud storage cat gs://my-bucket/code/pod.tar.gz | tar -xz -C ~/fourreal/incoming;"
    " bash ~/fourreal/incoming/tpu_scripts/worker.sh setup my-bucket'"
)
LAUNCH = [
    "gcloud storage objects describe gs://my-bucket/runs/tiny/config.json '--format=value(name)'",
    "# where that is there the run has begun, and --resume follows --out",
    f"{SSH} '--command={WORKER} launch configs/tiny.py --out runs/tiny'",
]
DESCRIBE = f"gcloud compute tpus queued-resources describe pod {PLACE} '--format=value(state.state)'"
SLICES = f"gcloud compute tpus tpu-vm list {PLACE} '--format=value(name.basename(),state)'"
STATUS = f"{SSH} '--command=test ! -e ~/fourreal/code || {WORKER} status'"
READY = [DESCRIBE, SLICES]
DELETE = [DESCRIBE, f"gcloud compute tpus queued-resources delete pod {PLACE} --force --quiet"]
DRY_RUNS = {
    "create": [*PROJECT, DESCRIBE, CREATE],
    "setup": [*PROJECT, *READY, *UPLOAD, INSTALL],
    "launch": [*READY, *LAUNCH],
    "status": [*READY, STATUS],
    "logs": [
        *READY,
        f"gcloud compute tpus queued-resources ssh pod {PLACE} --node=0 --worker=0"
        " '--command=tail -n 100 -F ~/fourreal/train.log'",
    ],
    "profile": ["gcloud storage cp --recursive gs://my-bucket/runs/tiny/profile 'ROOT/out/profile-tiny'"],
    "stop": [*READY, f"{SSH} '--command={WORKER} stop'"],
    "watch": [
        *PROJECT,
        "# where there is nothing: at the start, and again after every preemption; the upload only once",
        *(CREATE, *UPLOAD, INSTALL, *LAUNCH),
        "# every 60 s",
        *(*READY, STATUS),
        "# where training ended early: whether it has advanced since the last time; then the launch again",
        "gcloud storage ls 'gs://my-bucket/runs/tiny/checkpoints/*/files.json'",
        "# after a preemption",
        *DELETE,
    ],
    "list": [f"gcloud compute tpus queued-resources list {PLACE}", f"gcloud compute tpus tpu-vm list {PLACE}"],
    "delete": DELETE,
}


def only_error(result: subprocess.CompletedProcess, code: int = 1) -> str:
    """The one line of a failure."""
    assert result.returncode == code, result
    (line,) = result.stderr.splitlines()
    assert ": error: " in line
    return line


@pytest.fixture
def active(cloud):
    """The cloud with one slice, installed."""
    assert cloud.tpu("create").returncode == 0
    assert cloud.tpu("setup").returncode == 0
    return cloud


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_prints_the_exact_commands_and_runs_none(cloud, verb):
    result = cloud.tpu(verb, "--dry-run")
    expected = [line.replace("ROOT", str(cloud.repository)) for line in DRY_RUNS[verb]]
    assert (result.returncode, result.stderr, result.stdout.splitlines()) == (0, "", expected)
    assert cloud.calls() == [] and not (cloud.repository / "out").exists()


def printed_calls(printed: str) -> list[list[str]]:
    """The calls of gcloud that a dry run prints."""
    lines = [shlex.split(line, comments=True) for line in printed.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["gcloud"]]


@pytest.mark.parametrize("verb", sorted({*VERBS} - {"create", "watch"}))
def test_a_verb_makes_the_calls_that_its_dry_run_prints(active, verb):
    active.settings["RUN"] = "'my run'"
    active.write_settings()
    active.fail("tail -n", "ERROR: Ctrl-C")  # or it would follow the log
    active.put("calls.jsonl", "")
    printed = active.tpu(verb, "--dry-run").stdout
    assert active.calls() == []
    active.tpu(verb)
    here = [words for words in active.calls() if words[:2] != ["storage", "cat"]]  # which the machines do
    assert here == printed_calls(printed)


def test_create_makes_the_calls_that_its_dry_run_prints(cloud):
    printed = cloud.tpu("create", "--dry-run").stdout
    assert cloud.tpu("create").returncode == 0
    assert cloud.calls() == printed_calls(printed)


def test_watch_makes_the_calls_that_its_dry_run_prints_as_often_as_it_needs_them(cloud):
    printed = printed_calls(cloud.tpu("watch", "--then-delete", "--dry-run").stdout)
    cloud.put("training", "1 RuntimeError: the chip is hot")
    ended = "while [ ! -e homes/pod-0/fourreal/code-of-exit ]; do command -p sleep 0.02; done"
    cloud.events([":", f"{ended}; printf finish >training"])
    assert cloud.tpu("watch", "--then-delete").returncode == 0
    here = [words for words in cloud.calls() if words[:2] != ["storage", "cat"]]
    assert {*map(shlex.join, here)} == {*map(shlex.join, printed)}


def test_every_verb_explains_itself_without_settings(cloud):
    usage = cloud.tpu("--help").stdout
    for verb in VERBS:
        result = cloud.tpu(verb, "--help", "--settings", "/nowhere")
        assert result.returncode == 0 and result.stdout.startswith(f"tpu.sh {verb}") and f"  {verb} " in usage
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"PROVISIONING": "on-demand"}, {"--spot": False, "--reserved": False}),
        ({"PROVISIONING": "reserved"}, {"--spot": False, "--reserved": True}),
        ({"SLICES": "3"}, {"--node-count=3": True, "--node-prefix=pod": True, "--node-id=pod": False}),
        ({"ACCELERATOR_TYPE": "v4-32"}, {"--runtime-version=tpu-ubuntu2204-base": True}),
        ({"ACCELERATOR_TYPE": "v5p-128"}, {"--runtime-version=v2-alpha-tpuv5": True}),
        ({"ACCELERATOR_TYPE": "v6e-64"}, {"--runtime-version=v2-alpha-tpuv6e": True}),
        ({"RUNTIME_VERSION": "mine"}, {"--runtime-version=mine": True}),
        ({"NETWORK": "n", "SUBNETWORK": "s"}, {"--network=n": True, "--subnetwork=s": True}),
        ({"SERVICE_ACCOUNT": "a@b.c"}, {"--service-account=a@b.c": True}),
    ],
)
def test_settings_become_flags_of_the_request(cloud, changes, flags):
    cloud.settings |= changes
    assert cloud.tpu("create").returncode == 0
    (words,) = cloud.calls("queued-resources create")
    assert {flag: flag in words for flag in flags} == flags


def test_a_multi_slice_run_goes_from_nothing_to_training_on_every_machine(cloud):
    cloud.settings["SLICES"] = "2"
    cloud.put("workers", "2")
    for verb in ("create", "setup", "launch"):
        result = cloud.tpu(verb)
        assert (result.returncode, result.stderr) == (0, ""), result
    assert cloud.machines() == ["pod-0-0", "pod-0-1", "pod-1-0", "pod-1-1"]
    for machine in cloud.machines():
        assert cloud.trained_with(machine) == [["configs/tiny.py", "--out", "runs/tiny"]]
        home = cloud.folder / "homes" / machine
        installs = (home / "installs").read_text()
        assert "uv venv --python 3.11" in installs and "-c constraints.txt -e .[tpu,train]" in installs
        assert (
            "--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 my-bucket"
            in (home / "mounts").read_text()
        )
    assert (cloud.folder / "buckets/my-bucket/runs/tiny/config.json").exists()
    first, *lines = cloud.tpu("status").stdout.splitlines()
    assert first == "pod is ACTIVE" and sorted(lines) == [
        f"fourreal-worker {name}: running" for name in cloud.machines()
    ]


def test_every_verb_may_be_repeated(active):
    assert active.tpu("create").stdout == "pod exists already and is ready\n"
    assert len(active.calls("queued-resources create")) == 1
    assert active.tpu("setup").returncode == 0
    assert active.tpu("launch").returncode == 0
    assert active.trained_with()
    assert "running (it was already)" in active.tpu("launch").stdout
    assert len(active.trained_with()) == 1
    for _ in range(2):
        assert "fourreal-worker pod-0: stopped" in active.tpu("stop").stdout
    assert active.tpu("delete").stdout == "pod is deleted\n"
    result = active.tpu("delete")
    assert (result.returncode, result.stdout) == (
        0,
        "there is no queued resource pod in us-west4-a: nothing to delete\n",
    )
    assert len(active.calls("queued-resources delete")) == 1


def test_a_request_in_the_queue_is_not_made_twice(cloud):
    cloud.put("state", "WAITING_FOR_RESOURCES")
    result = cloud.tpu("create")
    assert (result.returncode, result.stdout) == (0, "pod exists already and is WAITING_FOR_RESOURCES\n")
    assert cloud.calls("queued-resources create") == []


def test_words_with_spaces_quotes_and_dollars_arrive_at_train_py_as_they_were(active):
    options = ["--name", 'it\'s "two" words', "$HOME `id` $(id)", "", "a\nb", "back\\slash;&|*~", "--x=é"]
    active.settings |= {"CONFIG": '"configs/it\'s a \\"config\\".py"', "RUN": "'my run'"}
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in options)
    active.write_settings(f"TRAIN_OPTIONS=({quoted})")
    assert active.tpu("setup").returncode == 0
    assert active.tpu("launch").returncode == 0
    assert active.trained_with() == [['configs/it\'s a "config".py', "--out", "runs/my run", *options]]
    launched = active.calls("worker.sh launch")
    assert active.tpu("stop").returncode == 0
    shutil.rmtree(active.folder / "buckets/my-bucket/runs/my run")
    printed = active.tpu("launch", "--dry-run").stdout  # the printed commands are those that were run
    subprocess.run(["bash", "-c", printed], env=active.environment(), check=True, capture_output=True)
    assert active.calls("worker.sh launch") == launched * 2


def test_launch_resumes_where_the_run_has_begun(active):
    active.tpu("launch")
    active.trained_with()
    active.tpu("stop")
    result = active.tpu("launch")
    assert result.stdout.startswith("runs/tiny has begun: going on with --resume\n")
    assert [words[-1] for words in active.trained_with(starts=2)] == ["runs/tiny", "--resume"]


def test_data_comes_from_the_bucket_or_from_a_copy_of_it(cloud):
    data = cloud.folder / "buckets/my-bucket/data/some grids"
    data.mkdir(parents=True)
    (data / "records").write_text("1")
    cloud.tpu("create")
    code = cloud.folder / "homes/pod-0/fourreal/code"
    assert cloud.tpu("setup").returncode == 0
    assert (code / "data").resolve() == data.parent
    cloud.write_settings("COPY_DATA=('some grids')")
    assert cloud.tpu("setup").returncode == 0
    assert (code / "data").resolve() == code.parent / "data" and (code / "data/some grids/records").read_text() == "1"


def test_setup_brings_the_checkout_without_what_git_ignores(active):
    (active.repository / "runs").mkdir()
    (active.repository / "runs" / "huge").write_text("")
    (active.repository / "new file.py").write_text("new")
    assert active.tpu("setup").returncode == 0
    code = active.folder / "homes/pod-0/fourreal/code"
    assert (code / "new file.py").read_text() == "new"
    assert not (code / "runs/huge").exists() and not (code / "tpu_scripts/settings.env").exists()


def test_setup_leaves_a_machine_alone_that_trains(active):
    active.tpu("launch")
    active.trained_with()
    error = only_error(active.tpu("setup"))
    assert "training runs here: tpu.sh stop it before installing" in error


def test_a_failed_installation_is_one_line_with_its_cause(active):
    active.put("no-packages", "")
    error = only_error(active.tpu("setup"))
    assert ": error: installing fourreal failed: no package jax (all of it: ~/fourreal/setup.log)" in error


def test_launch_before_setup_says_so(cloud):
    cloud.tpu("create")
    assert cloud.tpu("status").stdout.splitlines()[1] == "nothing is installed: run tpu.sh setup"
    assert cloud.tpu("launch").returncode == 1


def test_logs_follow_the_machine_asked_for(active):
    active.settings["SLICES"] = "2"
    active.write_settings()
    words = active.tpu("logs", "--dry-run", "--slice", "1", "--worker", "3", "--lines", "5").stdout
    assert "--node=1 --worker=3 '--command=tail -n 5 -F ~/fourreal/train.log'" in words
    assert "--slice is 2, but there are 2" in only_error(active.tpu("logs", "--slice", "2"), 2)


def test_profile_fetches_the_run_s_profile_or_says_that_there_is_none(cloud):
    error = only_error(cloud.tpu("profile"))
    assert "runs/tiny has no profile: turn it on" in error
    trace = cloud.folder / "buckets/my-bucket/runs/tiny/profile/plugins/trace"
    trace.parent.mkdir(parents=True)
    trace.write_text("x")
    target = cloud.folder / "a place"
    assert cloud.tpu("profile", "--to", str(target)).returncode == 0
    assert (target / "profile/plugins/trace").read_text() == "x"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptible' has been exceeded.",
            "no quota for 1 x v5litepod-16 (spot)",
        ),
        ("PERMISSION_DENIED: Permission 'tpu.queuedresources.create' denied.", "ask for roles/tpu.admin"),
        (
            "PERMISSION_DENIED: Cloud TPU API has not been used in project 1 before.",
            "gcloud services enable tpu.googleapis.com",
        ),
        ("no route to host", "queued-resources create pod failed with exit code 1: (gcloud) no route to host"),
    ],
)
def test_what_the_cloud_refuses_is_one_line_that_says_what_to_do(cloud, message, expected):
    cloud.fail("create", f"ERROR: (gcloud) {message}")
    assert expected in only_error(cloud.tpu("create"))


def test_a_key_that_is_in_no_agent_is_one_line(active):
    active.fail("ssh", "ERROR: (gcloud) SSH Key is not present in the SSH agent. Please run ...")
    assert "ssh-add ~/.ssh/google_compute_engine" in only_error(active.tpu("launch"))


def test_a_slice_that_ssh_did_not_reach_is_an_error_though_gcloud_only_warns(active):
    active.fail("ssh", "WARNING: Could not prepare all 2 nodes, attempting to ssh into the rest.", 0)
    assert "did not reach every slice" in only_error(active.tpu("launch"))


def test_a_command_without_an_answer_ends_at_its_time_limit(cloud):
    cloud.settings["COMMAND_TIMEOUT"] = "1"
    cloud.fail("create", "", -1)
    assert "queued-resources create pod gave no answer within 1 s" in only_error(cloud.tpu("create"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("apis", "", "the Cloud TPU API is off in my-project: run gcloud services enable"),
        ("hierarchical", "", "gs://my-bucket has no hierarchical namespace"),
    ],
)
def test_a_missing_prerequisite_is_one_line_before_anything_is_made(cloud, name, text, expected):
    cloud.put(name, text)
    assert expected in only_error(cloud.tpu("create"), 2)
    assert cloud.calls("queued-resources create") == []


@pytest.mark.parametrize("verb", sorted({*VERBS} - {"watch"}))
def test_no_login_is_one_line(cloud, verb):
    cloud.put("account", "")
    assert "gcloud is not logged in: run gcloud auth login" in only_error(cloud.tpu(verb))


def test_a_missing_bucket_comes_with_the_command_that_makes_it(cloud):
    (cloud.folder / "buckets/my-bucket").rmdir()
    error = only_error(cloud.tpu("create"), 2)
    assert "gcloud storage buckets create gs://my-bucket --project=my-project --location=us-west4" in error
    assert "--enable-hierarchical-namespace" in error


@pytest.mark.parametrize("missing", ["gcloud", "timeout", "git"])
def test_a_missing_tool_is_one_line(cloud, tmp_path, missing):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in {"bash", "env", "dirname", "sed", "head", "mktemp", "rm", "cat", "gcloud", "timeout", "git"} - {
        missing
    }:
        (tools / tool).symlink_to(shutil.which(tool, path=cloud.environment()["PATH"]))
    assert f"there is no {missing} here: install" in only_error(cloud.tpu("list", PATH=str(tools)), 2)


@pytest.mark.parametrize(
    ("state", "slices", "expected"),
    [
        (None, "", "there is no queued resource pod in us-west4-a: run tpu.sh create"),
        ("WAITING_FOR_RESOURCES", "", "pod is WAITING_FOR_RESOURCES: its machines are not there yet"),
        ("SUSPENDED", "", "pod is SUSPENDED: it was preempted"),
        ("FAILED", "", "pod is FAILED: run tpu.sh status for the reason"),
        ("ACTIVE", "pod-0\tREADY\n", "pod is ACTIVE, but slice pod-1 is missing: run tpu.sh delete, then create"),
        ("ACTIVE", "pod-0\tREADY\npod-1\tPREEMPTED\n", "slice pod-1 is PREEMPTED"),
        ("ACTIVE", "pod-0\tCREATING\npod-1\tREADY\n", "pod is not ready, slice pod-0 is CREATING: try again"),
    ],
)
def test_what_is_not_there_or_only_half_is_one_line(cloud, state, slices, expected):
    cloud.settings["SLICES"] = "2"
    if state:
        cloud.put("state", state)
    cloud.put("slices", slices)
    for verb in ("setup", "launch", "stop", "logs"):
        assert expected in only_error(cloud.tpu(verb))
    if state == "ACTIVE":
        assert expected in only_error(cloud.tpu("create"))
    assert cloud.calls("ssh") == []


def test_a_failed_request_says_why(cloud):
    cloud.put("state", "FAILED")
    assert "pod is FAILED: the stock in this zone is out" in only_error(cloud.tpu("status"))
    assert "run tpu.sh delete first" in only_error(cloud.tpu("create"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ZOME=us-west4-a", "sets ZOME, which is no setting"),
        ("PROJECT=", "PROJECT is '': expected your Google Cloud project's id"),
        ("ZONE=us-west4", "ZONE is 'us-west4': expected a zone, as us-west4-a"),
        ("BUCKET=gs://mine", "BUCKET is 'gs://mine': expected a bucket's name without gs://"),
        ("NAME=My_Pod", "NAME is 'My_Pod': expected"),
        ("ACCELERATOR_TYPE=tpu7x-16", "the Cloud TPU API ends at v6e"),
        ("ACCELERATOR_TYPE=v5e-16", "expected v4-*, v5litepod-*"),
        ("SLICES=0", "SLICES is '0': expected a whole number of 1 or more"),
        ("SLICES=2\nMIN_SLICES=3", "MIN_SLICES is 3: expected at most SLICES, 2"),
        ("PROVISIONING=cheap", "expected spot, on-demand or reserved"),
        ("WAIT=1h30", "WAIT is '1h30': expected"),
        ("CONFIG=configs/none.py", "CONFIG is 'configs/none.py': expected a file inside this repository"),
        ("RUN=../elsewhere", "RUN is '../elsewhere': expected a folder's name"),
        ("TRAIN_OPTIONS='--a b'", "TRAIN_OPTIONS needs parentheses around its words"),
        ("TRAIN_OPTIONS=(--overwrite)", "TRAIN_OPTIONS has --overwrite"),
        ("COPY_DATA=(/etc)", "COPY_DATA has '/etc'"),
        ("POLL_SECONDS=often", "POLL_SECONDS is 'often'"),
        ("RUN='a", "cannot be read"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_asked_of_the_cloud(cloud, line, expected):
    cloud.write_settings(line)
    assert expected in only_error(cloud.tpu("create"), 2)
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["make"], "'make' is no verb: expected one of create setup"),
        (["create", "--force"], "'--force' means nothing here"),
        (["create", "--settings"], "expected a file after --settings"),
        (["create", "--settings", "/nowhere.env"], "there is no /nowhere.env: copy"),
        (["logs", "--slice", "x"], "expected a number after --slice"),
        (["profile", "here"], "profile takes --to FOLDER"),
        (["watch", "now"], "watch takes --then-delete"),
    ],
)
def test_a_wrong_command_line_is_one_line(cloud, words, expected):
    assert expected in only_error(cloud.tpu(*words), 2)


def test_the_example_explains_every_setting_that_is_checked(cloud):
    example = (cloud.repository / "tpu_scripts" / "settings.example.env").read_text().splitlines()
    lines = [line for line in example if line[:1].isupper()]
    names = (cloud.repository / "tpu_scripts" / "settings.sh").read_text().split('SETTINGS="')[1].split('"')[0].split()
    assert [line.split("=")[0] for line in lines] == names
    assert all("  # " in line for line in lines)


def test_the_calls_are_recorded_as_words(cloud):
    cloud.tpu("list")
    assert json.loads((cloud.folder / "calls.jsonl").read_text().splitlines()[-1])[:4] == [
        "compute",
        "tpus",
        "tpu-vm",
        "list",
    ]
