"""Compiled programs that a run keeps in its folder."""

import jax
import jax.numpy as jnp
import pytest

from fourreal.training.compiled import kept_programs
from fourreal.training.config import load_config
from fourreal.training.run_folder import COMPILED, CONFIG, Start, check_folder, make_folder


@pytest.fixture
def no_cache():
    """Without the folder that the tests share."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_for_accelerators_are_kept_in_the_folder_and_only_inside(tmp_path, no_cache, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(KeyboardInterrupt), kept_programs(tmp_path):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
        raise KeyboardInterrupt
    assert jax.config.jax_compilation_cache_dir is None


def test_programs_for_a_cpu_and_a_folder_of_the_users_stay_as_they_are(tmp_path, no_cache, monkeypatch):
    with kept_programs(tmp_path):
        assert jax.config.jax_compilation_cache_dir is None
        jax.jit(lambda x: x + 1)(jnp.ones(3))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.config.update("jax_compilation_cache_dir", "/mine")
    with kept_programs(tmp_path):
        assert jax.config.jax_compilation_cache_dir == "/mine"
    assert not list(tmp_path.iterdir())


def test_a_folder_with_nothing_but_programs_is_free_and_overwriting_leaves_them(tmp_path):
    program = tmp_path / COMPILED / "program"
    program.parent.mkdir()
    program.write_text("")
    config = load_config("configs/nano.py")
    check_folder(config, tmp_path, Start())
    (tmp_path / "sheets").mkdir()
    make_folder(config, tmp_path, overwrite=True, init_from=None, fingerprint="")
    assert program.exists() and (tmp_path / CONFIG).exists() and not (tmp_path / "sheets").exists()
