"""`fourreal encode` and `fourreal data captions`: what is stored, what is refused, and what training makes of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from wan_vae_weights import random_weights

from fourreal.codecs import PixelCodec, WanCodec
from fourreal.codecs.wan import WanVAEConfig
from fourreal.codecs.wan.parameters import parameter_table
from fourreal.conditions import Cameras, Text
from fourreal.data.batches import Batches, PipelineConfig
from fourreal.data.encode import Captions, Encode, Encoder, caption
from fourreal.data.masks import CutMix, MaskMix
from fourreal.data.sources import Records
from fourreal.data.write import Split, write_scenes
from fourreal.errors import UserError
from fourreal.scene import Cameras as CameraArrays
from fourreal.scene import Cut, Scene
from fourreal.serialize import to_json
from fourreal.text.file import write_texts
from fourreal.training.command import Train
from fourreal.training.config import TrainConfig

NETWORK = WanVAEConfig(
    base_dim=4,
    decoder_base_dim=4,
    z_dim=3,
    dim_mult=(1, 1),
    num_res_blocks=1,
    temperal_downsample=(True,),
    latents_mean=(0.1, -0.2, 0.3),
    latents_std=(1.0, 2.0, 0.5),
)
CELLS, VIEWS = (WanCodec("random", mode=mode, network=NETWORK) for mode in ("per_cell", "per_view"))
LINES = ("A fox runs.", "An owl sits.", "A fox runs.")
WIDTH = 6
WHOLE = Cut(np.arange(3), np.arange(5))


def scene(place: int) -> Scene:
    rng = np.random.default_rng(place)
    K, c2w = np.tile(np.diag(np.float32([9, 9, 1])), (3, 1, 1)), np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    exists = np.ones((3, 5), bool)
    exists[2, 1] = place == 0
    more = {"scene": json.dumps({"subjects": [{"unit": "red_fox"}]})}
    return Scene(
        rng.integers(0, 256, (3, 5, 8, 8, 3), np.uint8), exists=exists, cameras=CameraArrays(K, c2w), more=more
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of two scenes to train on and one to validate, captions, and their features."""
    folder = tmp_path_factory.mktemp("encode")
    write_scenes(folder / "pixels", {"train": Split(scene, 2), "validation": Split(scene, 1)}, licence="CC0")
    (folder / "captions.txt").write_text("\n".join(LINES) + "\n")
    arrays = [np.full((length, WIDTH), length, np.float32) for length in (1, 2, 3, 4)]
    write_texts(folder / "text.safetensors", list(dict.fromkeys(LINES)), "bad", [1, 2, 3, 4], WIDTH, arrays)
    for codec, name in ((CELLS, "cells"), (VIEWS, "views")):
        told = {"text": folder / "text.safetensors", "captions": folder / "captions.txt"}
        Encode(folder / "pixels", folder / name, codec, **told).run()
    return folder


@pytest.mark.parametrize("codec", [CELLS, VIEWS], ids=["cells", "views"])
def test_a_data_set_of_latents_holds_what_the_codec_makes_of_the_pixels(folder, codec, capsys):
    stored = Records(str(folder / ("cells" if codec is CELLS else "views"))).open("train")
    assert len(stored) == 2 and stored.codec == codec.latents()
    times = np.arange(stored.shape(0)[1])
    for place in range(2):
        found, pixels = stored.read(place, Cut(np.arange(3), times)), scene(place)
        latents = np.asarray(jax.jit(codec.encode)(codec.parameters(), pixels.frames[None])[0])
        assert found.frames.dtype == np.float16
        np.testing.assert_allclose(found.frames, latents, rtol=2**-10, atol=1e-6)  # of half precision
        np.testing.assert_array_equal(found.exists, codec.all_of(pixels.exists))
        np.testing.assert_array_equal(found.cameras.K[:, 0, 0], [4.5] * 3)  # a latent is 2 x 2 pixels
        np.testing.assert_array_equal(found.text, np.full((3 + place, WIDTH), 3 + place, np.float32))
        np.testing.assert_array_equal(found.more["empty_text"], np.ones((1, WIDTH)))
        assert "red_fox" in found.more["scene"]
    assert (folder / "cells" / "LICENSE").read_text() == "CC0"


def test_batches_of_latents_have_text_and_cameras_of_their_own_size(folder):
    conditions = Text(width=WIDTH, drop=0.5), Cameras()
    config = PipelineConfig(Records(str(folder / "cells")), views=3, times=5, batch_size=2, max_stride=1)
    batch = next(Batches(config, conditions, WanCodec("elsewhere", network=NETWORK)).train())
    assert batch["frames"].shape == (2, 3, 5, 4, 4, 3)
    prompt = batch["conditions"]["text"]
    assert prompt.features.shape == (2, 512, WIDTH) and prompt.negative.shape == (2, 1, WIDTH)
    assert batch["dropped"]["text"].shape == (2,)
    pixels = dataclasses.replace(config, source=Records(str(folder / "pixels")))
    of_pixels = next(Batches(pixels, conditions[1:], CELLS).train())
    jax.tree.map(np.testing.assert_array_equal, of_pixels["conditions"]["cameras"], batch["conditions"]["cameras"])


def test_latents_of_whole_views_are_cut_from_the_first_and_given_from_the_first(folder):
    """Each depends on those before it, so a cut elsewhere, or a given latent behind one that is not, has no pixels."""
    config = PipelineConfig(
        Records(str(folder / "views")), views=3, times=2, batch_size=2, masks=MaskMix(random_cells=9)
    )
    stored = Records(str(folder / "views")).open("train")
    latents = [stored.read(place, Cut(np.arange(3), np.arange(2))).frames for place in range(2)]
    batches = Batches(config, codec=VIEWS).train()
    for _ in range(20):
        batch = next(batches)
        for example, place in enumerate(batch["index"]):
            first, last = (frames.astype(np.float32).sum() for frames in (batch["frames"][example], latents[place]))
            assert first == pytest.approx(last, rel=1e-3)  # all times, the views perhaps reversed
        assert not (batch["given"][:, :, 1] & ~batch["given"][:, :, 0]).any()
    batches.close()
    freeze = dataclasses.replace(config, cuts=CutMix(grid=0, freeze_time=1))
    batch = next(Batches(freeze, codec=VIEWS).train())
    assert {float(x.astype(np.float32).sum()) for x in batch["frames"]} <= {
        float(x[:, :1].astype(np.float32).sum()) for x in latents
    } | {float(x[::-1, :1].astype(np.float32).sum()) for x in latents}
    with pytest.raises(UserError, match="only those of time 0 are"):
        next(Batches(dataclasses.replace(config, cuts=CutMix(grid=0, image=1)), codec=VIEWS).train())


def test_latents_of_another_codec_are_refused(folder):
    for codec in (VIEWS, PixelCodec(), dataclasses.replace(CELLS, network=WanVAEConfig())):
        config = PipelineConfig(Records(str(folder / "cells")), views=3, times=5)
        with pytest.raises(UserError, match="give the codec that encoded it"):
            Batches(config, codec=codec).open("train")


def test_a_run_on_latents_needs_no_autoencoder_and_judges_its_samples_as_latents(folder, tiny, tmp_path, capsys):
    config = TrainConfig(
        "latents",
        tiny.config(cameras=True, text_width=WIDTH, prediction="u", patch=(1, 2, 2)),
        data=PipelineConfig(Records(str(folder / "cells")), views=3, times=5, batch_size=2),
        codec=WanCodec(network=NETWORK),
        steps=2,
        eval_grids=1,
        sampling_steps=1,
    )
    Train(config, out=str(tmp_path / "run")).run()
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation/mse_latents"] > 0 and "validation/psnr_all" not in last
    assert not (tmp_path / "run" / "sheets").exists()
    assert "validation error of latents" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": PixelCodec()}, "encodes nothing"),
        ({"codec": WanCodec()}, "has no weights here"),
        ({"captions": "captions.txt"}, "go together"),
        ({"captions": "short.txt", "text": "text.safetensors"}, "has 1 lines: expected 3"),
        ({"captions": "other.txt", "text": "text.safetensors"}, 'line 2: the file has no prompt "A cat"'),
        ({"captions": "none.txt", "text": "text.safetensors"}, "no file of captions"),
        ({"dataset": "cells"}, "holds latents already"),
        ({"out": "cells"}, "exists already"),
        ({"out": "pixels", "overwrite": True}, "is the data set itself"),
        (
            {"codec": WanCodec("random", network=WanVAEConfig(dim_mult=(1,) * 5, temperal_downsample=(False,) * 4))},
            "of 16 and 16",
        ),
    ],
)
def test_what_cannot_be_encoded_is_refused_before_anything_is_written(folder, tmp_path, options, message):
    (folder / "short.txt").write_text("A fox runs.\n")
    (folder / "other.txt").write_text("A fox runs.\nA cat\nA fox runs.\n")
    paths = {name: folder / value if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises((UserError, FileExistsError, FileNotFoundError), match=message):
        Encode(**{"dataset": folder / "pixels", "out": tmp_path / "out", "codec": CELLS} | paths).run()
    assert not (tmp_path / "out").exists()


def test_an_encoding_that_was_stopped_does_not_go_on_with_other_weights(folder, tmp_path, monkeypatch):
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(to_json(NETWORK)))
        shapes = {entry.theirs: entry.shape for entry in parameter_table(NETWORK).values()}
        save_file(random_weights(shapes, seed), tmp_path / name / "model.safetensors")

    def encode(name):
        Encode(folder / "pixels", tmp_path / "out", dataclasses.replace(CELLS, weights=str(tmp_path / name))).run()

    make = Encoder.make
    monkeypatch.setattr(Encoder, "make", lambda self, place: make(self, place) if self.split == "train" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode("a")
    monkeypatch.undo()
    with pytest.raises(UserError, match="begun with other settings"):
        encode("b")
    encode("a")
    assert len(Records(str(tmp_path / "out")).open("validation")) == 1


def test_captions_name_what_rendered_scenes_show(folder, tmp_path):
    Captions(folder / "pixels", tmp_path / "captions.txt").run()
    assert (tmp_path / "captions.txt").read_text() == 3 * "A red fox moves on open ground.\n"
    assert caption(["egypt_mummy", "owl"]) == "An egypt mummy and an owl move on open ground."
    assert caption([]) == "Open ground under a clear sky."
    with pytest.raises(FileExistsError):
        Captions(folder / "pixels", tmp_path / "captions.txt").run()
