"""Files of frames in and out: clips, pictures, videos, npz, cameras beside them, contact sheets."""
