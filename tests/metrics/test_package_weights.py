"""What the reader of other packages' weights makes, and what it refuses."""

import hashlib
import io
import pickle

import numpy as np
import pytest

from fourreal.metrics.package_weights import ArrayReader, read_package_weights

ARRAYS = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}
STREAM = pickle.dumps(ARRAYS, protocol=3).replace(b"numpy._core", b"numpy.core")  # as the files name it


@pytest.mark.parametrize("harm", [print, io.BytesIO, np.load])
def test_the_reader_makes_arrays_and_nothing_else(harm):
    np.testing.assert_array_equal(ArrayReader(io.BytesIO(STREAM)).load()["kernel"], ARRAYS["kernel"])
    with pytest.raises(pickle.UnpicklingError, match="no part of a NumPy array"):
        ArrayReader(io.BytesIO(pickle.dumps({"kernel": harm}))).load()


def test_weights_with_another_hash_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "some_nets" / "weights").mkdir(parents=True)
    (tmp_path / "some_nets" / "__init__.py").touch()
    (tmp_path / "some_nets" / "weights" / "net.ckpt").write_bytes(STREAM)
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(STREAM).hexdigest()
    np.testing.assert_array_equal(read_package_weights("some_nets", "1.2", "net", digest)["kernel"], ARRAYS["kernel"])
    with pytest.raises(ValueError, match=r"force-reinstall some-nets==1\.2"):
        read_package_weights("some_nets", "1.2", "net", "0" * 64)
