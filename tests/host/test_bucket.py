"""Paths in a bucket, and the lease of one: against a server that stands for Google Cloud Storage."""

import json
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from object_store import emptied, store_of_this_process

from fourreal.errors import LOST, MissingFile, UserError, exit_code
from fourreal.host import lease
from fourreal.host.bucket import BucketPath
from fourreal.host.folders import LEASE, run_path
from fourreal.host.lease import Lease, leased


@pytest.fixture(scope="module")
def server():
    """For all tests of the module."""
    with store_of_this_process() as server:
        yield server


@pytest.fixture
def store(server):
    """It, empty."""
    with emptied(server):
        yield server


def seen(root: epath.Path) -> list:
    """What a folder's methods say of it."""
    walked = {str(top.relative_to(root)): (sorted(dirs), sorted(files)) for top, dirs, files in root.walk()}
    globbed = [sorted(str(path.relative_to(root)) for path in root.glob(pattern)) for pattern in ("*", "a*", "*/*.txt")]
    paths = [root / name for name in ("a", "a/b", "a/b/c.txt", "empty", "x", "nothing", "a/nothing")]
    kinds = [(path.exists(), path.is_dir(), path.is_file()) for path in paths]
    return [walked, globbed, kinds, sorted(path.name for path in root.iterdir())]


def test_folder_in_a_bucket_does_what_one_on_a_disk_does(store, tmp_path):
    said = []
    for root in (epath.Path(tmp_path) / "root", epath.Path("gs://bucket/root")):
        (root / "a" / "b").mkdir(parents=True)
        (root / "a" / "b" / "c.txt").write_text("grüße")
        (root / "a" / "d.txt").write_bytes(b"12")
        (root / "empty").mkdir()
        (root / "x").write_bytes(b"")
        before = seen(root)
        with pytest.raises(FileExistsError):
            (root / "a").mkdir()
        (root / "a").mkdir(exist_ok=True, parents=True)
        for path in (root / "nothing", root / "a" / "b"):
            with pytest.raises(OSError):
                path.read_bytes()
        (root / "x").replace(root / "y")
        (root / "y").rename(root / "a" / "z")
        texts = [(root / "a" / "b" / "c.txt").read_text(), (root / "a" / "z").read_bytes()]
        (root / "a" / "b").rmtree()
        (root / "a" / "d.txt").unlink()
        with pytest.raises(FileNotFoundError):
            (root / "a" / "d.txt").unlink()
        said.append([before, texts, seen(root)])
    assert said[0] == said[1]


def test_names_of_buckets_keep_their_slashes_whatever_read_them(tmp_path):
    for name in ("gs://bucket/a/b", "gs:/bucket/a/b", BucketPath("gs://bucket/a/b")):
        assert str(run_path(name)) == "gs://bucket/a/b" and run_path(name).absolute() == run_path(name)
    assert run_path(tmp_path) == tmp_path


@pytest.mark.parametrize("of", ["read_bytes", "exists", "iterdir", "mkdir"])
def test_bucket_that_refuses_is_no_empty_one(store, of):
    with pytest.raises(UserError, match="gives no permission: log in with") as raised:
        list(getattr(epath.Path("gs://closed/run"), of)())
    assert exit_code(raised.value) == 2


def test_bucket_that_is_not_there_is_said_to_be_so(store):
    with pytest.raises(MissingFile, match="there is no bucket gs://other: make it"):
        epath.Path("gs://other/run").write_text("")
    with pytest.raises(UserError, match="'No' is no name of a bucket"):
        epath.Path("gs://No/run").write_text("")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_bucket_that_does_not_answer_for_a_moment_is_asked_again_and_then_is_one_for_a_new_start(store, status):
    path, answers = epath.Path("gs://bucket/run/x"), [status, status]
    store.refuses = lambda method, name: answers.pop() if answers else 0
    path.write_text("1")
    assert path.read_text() == "1" and not answers
    store.refuses = lambda method, name: status
    with pytest.raises(OSError, match="gs://bucket/run/x does not answer: ") as raised:
        path.read_text()
    assert exit_code(raised.value) == LOST


def test_compiled_programs_are_kept_in_a_bucket(store):
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in options]
    try:
        jax.config.update("jax_compilation_cache_dir", "gs://bucket/run/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        for kept in (0, 1):
            compilation_cache.reset_cache()
            store.requests.clear()
            jax.jit(lambda x: x * 3 + 1).lower(jnp.ones(3)).compile()
            assert any(name.startswith("run/compiled/jit_") for name in store.objects)
            wrote = [name for method, name in store.requests if method == "POST" and name.endswith("-cache")]
            assert bool(wrote) != kept
    finally:
        for name, value in zip(options, before, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()


class Lost(BaseException):
    """Instead of the end of the process."""


def hold(seconds: float = 2.0) -> tuple[Lease, list[str]]:
    """A lease, and what is said when it is lost."""
    said: list[str] = []
    return Lease(epath.Path("gs://bucket/run"), seconds, said.append), said


def test_folder_in_a_bucket_has_one_writer_at_a_time(store, monkeypatch):
    monkeypatch.setenv(lease.VARIABLE, "2")
    folder = epath.Path("gs://bucket/run")
    with leased(folder):
        assert set(store.objects) == {f"run/{LEASE}"}
        with pytest.raises(
            UserError, match=r"another process is training in gs://bucket/run \(.*, process \d+\): wait"
        ):
            hold()
    assert not store.objects
    with leased(folder):
        pass


def test_lease_that_is_not_renewed_is_taken_over_once_its_time_is_up(store):
    other = {"id": "1", "host": "far", "process": 1, "machine": "another", "seconds": 1.5, "renewed": 7}
    store.write(f"run/{LEASE}", json.dumps(other).encode())
    began = time.monotonic()
    first, said = hold()
    assert 1.5 <= time.monotonic() - began < 10 and not said
    assert json.loads(store.objects[f"run/{LEASE}"][1])["process"] != 1
    first.close()


def test_lease_of_a_process_of_this_machine_that_is_dead_is_taken_over_at_once(store):
    code = (
        "import os\nfrom etils import epath\nfrom fourreal.host.lease import Lease\n"
        "Lease(epath.Path('gs://bucket/run'), 60, print)\nos._exit(0)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    assert f"run/{LEASE}" in store.objects
    began = time.monotonic()
    hold()[0].close()
    assert time.monotonic() - began < 5


def test_of_two_that_take_over_one_gets_the_lease(store):
    other = {"id": "1", "host": "far", "process": 1, "machine": "another", "seconds": 1.0}
    store.write(f"run/{LEASE}", json.dumps(other).encode())
    got, refused = [], []

    def take():
        try:
            got.append(hold()[0])
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 2
    got[0].close()


def test_holder_notices_that_its_lease_is_another_s_before_it_seals_or_within_a_tenth_of_its_time(store):
    held, said = hold(60)
    store.write(f"run/{LEASE}", b'{"id": "1"}')
    held.renew()
    assert len(said) == 1 and said[0].startswith(
        "the lease of gs://bucket/run is lost, another process has taken it over"
    )
    held.close()
    assert store.objects[f"run/{LEASE}"][1] == b'{"id": "1"}'  # it stays the other's
    store.objects.clear()
    held, said = hold(2)
    store.write(f"run/{LEASE}", b'{"id": "1"}')
    time.sleep(0.6)
    assert said
    held.close()


def test_process_that_has_lost_its_lease_ends_at_once_with_one_line_for_a_new_start(store, monkeypatch):
    monkeypatch.setenv(lease.VARIABLE, "2")
    code = (
        "import time\nfrom etils import epath\nfrom fourreal.host.lease import leased\n"
        "with leased(epath.Path('gs://bucket/run')): time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while f"run/{LEASE}" not in store.objects:
        time.sleep(0.01)
    store.write(f"run/{LEASE}", b'{"id": "1"}')
    said = process.communicate(timeout=30)[1]
    assert process.returncode == LOST and store.objects[f"run/{LEASE}"][1] == b'{"id": "1"}'
    assert said.splitlines()[-1].startswith(
        "fourreal train: error: the lease of gs://bucket/run is lost, another process"
    )
    assert "Traceback" not in said


def test_holder_whose_lease_cannot_be_renewed_ends_before_another_may_take_it_over(store):
    held, said = hold(3)
    store.refuses = lambda method, name: 503
    began = time.monotonic()
    while not said:
        time.sleep(0.01)
    assert 1.5 < time.monotonic() - began < 2.9 and "it could not be renewed for 2 s" in said[0]
    held.close()


def test_lease_whose_renewal_got_lost_on_the_way_back_is_still_the_holder_s(store):
    held, said = hold(60)
    held._generation = b"\0" + (1).to_bytes(8, "little")  # as before that renewal
    held.renew()
    held.renew()
    assert not said
    held.close()
    assert not store.objects
