"""The trace of a few steps."""

import signal

import jax

from fourreal.training.profile import ON_SIGNAL, SETTLED, Profile


def test_traces_as_many_steps_as_asked_from_the_tenth_on(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder, number)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop", number)))
    profile = Profile(tmp_path, first=100, steps=3)
    for number in range(101, 120):
        profile.before(number)
        profile.after(number, None)
    profile.close()
    assert calls == [("start", tmp_path, 100 + SETTLED), ("stop", 100 + SETTLED + 2)]


def test_trace_that_the_end_of_a_run_cuts_short_is_written(tmp_path):
    profile = Profile(tmp_path, first=0, steps=5)
    profile.before(SETTLED)
    profile.after(SETTLED, jax.jit(lambda x: x + 1)(1.0))
    profile.close()
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_nothing_is_traced_unless_asked(tmp_path):
    profile = Profile(tmp_path, first=0, steps=0)
    profile.before(SETTLED)
    profile.close()
    assert not list(tmp_path.iterdir())


def test_a_signal_traces_the_next_steps_each_time_that_it_comes(tmp_path, monkeypatch):
    calls, listened = [], signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", number)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop", number)))
    profile = Profile(tmp_path, first=0, steps=0)
    for number in range(1, 30):
        profile.before(number)
        profile.after(number, None)
        if number in (4, 20):
            signal.raise_signal(signal.SIGUSR1)
    profile.close()
    assert calls == [("start", 5), ("stop", 4 + ON_SIGNAL), ("start", 21), ("stop", 20 + ON_SIGNAL)]
    assert signal.getsignal(signal.SIGUSR1) == listened
