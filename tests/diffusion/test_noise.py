import numpy as np

from fourreal.diffusion.noise import cell_noise


def test_noise_of_a_cell_does_not_depend_on_the_grids_size():
    large, small = cell_noise(3, 4, 5, (2, 2, 3)), cell_noise(3, 2, 3, (2, 2, 3))
    np.testing.assert_array_equal(large[:2, :3], small)


def test_noise_is_normal_and_differs_between_cells_and_seeds():
    noise = np.asarray(cell_noise(3, 4, 5, (16, 16, 3)))
    cells = noise.reshape(20, -1)
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size) and abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    correlation = np.corrcoef(cells) - np.eye(20)
    assert np.abs(correlation).max() < 6 / np.sqrt(768)
    assert np.abs(noise - cell_noise(4, 4, 5, (16, 16, 3))).mean() > 0.5
