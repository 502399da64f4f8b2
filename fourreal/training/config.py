"""The settings of a training run, composed of the dataclasses that each module owns, and the config files that hold them.

A config file is a Python file that sets `CONFIG = TrainConfig(...)`. Only a file that the user names is ever executed; what a
run or a checkpoint stores is JSON.
"""

import dataclasses
import difflib
import math
import runpy
from pathlib import Path
from typing import Literal, TypeVar

from fourreal.checkpoints.upgrade import KEY, VERSION, version_of
from fourreal.codecs import Codec, PixelCodec
from fourreal.data.batches import PipelineConfig
from fourreal.diffusion.flow import LossConfig, SigmaConfig
from fourreal.errors import MissingFile, UserError
from fourreal.host.folders import run_path
from fourreal.host.watchdog import HangConfig
from fourreal.models.fusions import Base
from fourreal.models.fusions.two_streams import TwoStreams
from fourreal.models.grid_dit import GridDiTConfig
from fourreal.models.video_dit import VideoDiTConfig
from fourreal.nn.kernels import AttentionConfig
from fourreal.options import read_options
from fourreal.parallel.mesh import MeshConfig
from fourreal.parallel.overlap import Overlap
from fourreal.serialize import flat_settings, from_json, read_json, to_json
from fourreal.training.bad_steps import BadStepsConfig
from fourreal.training.optimizer import OptimConfig

Config = TypeVar("Config")
T = TypeVar("T")
ON_CLIPS = ("all", "attention", "lora")  # what of a base trains
STORED = "config.json"  # of a run, in its folder
# Where a bare name is looked for: the working directory, the installed package, and the repository that holds it.
FOLDERS = (Path("configs"), Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    name: str
    """name of the run; its folder is `runs/NAME` unless `out` says otherwise"""
    model: VideoDiTConfig
    """the base"""
    grid: GridDiTConfig = GridDiTConfig()
    """the fusion of the two axes; base trains the base alone, on clips"""
    data: PipelineConfig = PipelineConfig()
    """examples, masks and batches"""
    codec: Codec = PixelCodec()
    """between pixels and what the model works on"""
    sigma: SigmaConfig = SigmaConfig()
    """noise levels"""
    loss: LossConfig = LossConfig()
    """what is minimised"""
    optim: OptimConfig = OptimConfig()
    """optimizer and schedule"""
    mesh: MeshConfig = MeshConfig()
    """devices along each axis"""
    attention: AttentionConfig = AttentionConfig()
    """kernel of the attention"""
    overlap: Overlap = "chip"
    """how collectives of a step run beside what is computed: as is known to run on the chip; in fusions or by sparse cores, on
    TPUs; or none more than XLA does by itself"""
    trains: Literal["all", "attention", "lora", "sync", "sync_and_conditions"] = "all"
    """which parameters train: all; only the sync layers with their projection of sigma; these and what conditions the base
    (given vector, context, maps of hints and cameras, copy gates); or, with all of those, the self-attention or model.lora_*"""
    sampling_steps: int = 4
    """denoising steps of validation, and by default of whoever samples the weights"""
    steps: int = 1000
    """training steps, one batch each; the learning rate decays over all of them"""
    seed: int = 0
    """of the parameters and of the noise"""
    eval_every: int = 200
    """steps between validations; 0: only at the end"""
    eval_grids: int = 16
    """validation grids"""
    save_every: int = 500
    """steps between checkpoints; one is always saved at the end"""
    save_minutes: float = 0.0
    """minutes after a checkpoint when another one is saved at the latest; 0: only the steps count"""
    keep_every: int = 0
    """checkpoints of whole multiples of so many steps stay for good, of the others the newest two; 0: none"""
    local_every: int = 0
    """steps between checkpoints on the hosts' own disks, besides those of the run's folder; the newest is read; 0: none"""
    local_folder: str = ""
    """where on each host; none: `fourreal` in the folder for temporary files"""
    log_every: int = 10
    """steps between lines of metrics.jsonl"""
    wandb: str = ""
    """project of Weights & Biases that gets the numbers and pictures, too; none: none"""
    profile_steps: int = 0
    """steps to trace with JAX's profiler, from the tenth on, into the run's folder `profile`; 0: none"""
    bad_steps: BadStepsConfig = BadStepsConfig()
    """what is done about steps whose numbers are not finite"""
    replicas_every: int = 100
    """steps between checks that the copies along mesh.data are the same, besides one before each checkpoint; 0: no checks"""
    watchdog_minutes: float = 10.0
    """minutes without progress after which every process says where it stands; 0: never"""
    repeat_examples: bool = False
    """train also where the mesh does not divide the batch, so that several devices compute the same examples"""
    hang: HangConfig = HangConfig()
    """minutes without progress after which every process ends, to be started again"""

    def __post_init__(self):
        if Path(self.name).name != self.name or not self.name:
            raise UserError(f"name is '{self.name}': give a plain name, without slashes; the run's folder is runs/NAME")
        for setting, value in flat_settings(to_json(self)).items():
            if isinstance(value, float) and math.isnan(value):
                raise UserError(f"{setting} is nan: give a number")
        for field, least in (
            ("steps", 1),
            ("eval_grids", 1),
            ("save_every", 1),
            ("log_every", 1),
            ("eval_every", 0),
            ("keep_every", 0),
            ("local_every", 0),
            ("profile_steps", 0),
            ("replicas_every", 0),
        ):
            if getattr(self, field) < least:
                raise UserError(f"{field} is {getattr(self, field)}: give {least} or more")
        for field in ("watchdog_minutes", "save_minutes"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UserError(f"{field} is {getattr(self, field)}: give 0 or more")
        if self.keep_every % self.save_every:
            raise UserError(
                f"keep_every is {self.keep_every}: give a multiple of save_every, which is {self.save_every}"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}: give 0 to 2^32 - 1")
        if self.loss.gap and not isinstance(self.grid.make_fusion(), TwoStreams):
            raise UserError(
                f"loss.gap is {self.loss.gap} with grid.fusion {self.grid.fusion}: it is the distance of two streams, "
                "give 0 or a fusion of two"
            )
        if self.loss.lpips and self.codec != PixelCodec():
            raise UserError(
                f"loss.lpips is {self.loss.lpips} and the codec {self.codec.kind}: LPIPS looks at pixels, give 0"
            )
        if self.trains == "lora" and not self.model.lora_rank:
            raise UserError("trains is 'lora' and the model has none: give model.lora_rank, 16 for example")
        if isinstance(self.grid.make_fusion(), Base):
            if self.trains not in ON_CLIPS:
                raise UserError(
                    f"trains is '{self.trains}' with grid.fusion base: on clips train one of {', '.join(ON_CLIPS)}"
                )
            if self.data.cuts.grid:
                raise UserError("grid.fusion is base, which takes clips: set data.cuts.grid 0 and weights of the clips")


def load_config(name: str | Path, kind: type[Config] = TrainConfig) -> Config:
    """The config that a user names: a file, whose CONFIG it is; the bare name of one in configs/, as nano; or a run's folder.

    A file is executed, a folder's config.json is not. Raises MissingFile, or UserError for what is no config of that kind.
    """
    path = run_path(name)
    if kind is TrainConfig and (path / STORED).is_file():
        return read_run(path)
    if not path.suffix and len(path.parts) == 1:
        path = next((found for folder in FOLDERS if (found := folder / f"{path}.py").is_file()), path)
    if not path.is_file():
        known = sorted(str(file) for file in Path("configs").glob("*.py"))
        bare = sorted({file.stem for folder in FOLDERS for file in folder.glob("*.py")})
        near = difflib.get_close_matches(str(path), [*known, *bare, *map(str, path.parent.glob("*.py"))], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known or bare) or 'none'}"
        raise MissingFile(f"there is no config file {path}; {hint}")
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except (Exception, SystemExit) as error:  # whatever the user's own code does
        raise UserError(f"{path} does not run ({type(error).__name__}: {error}): mend the file") from error
    if not isinstance(config, kind):
        raise UserError(f"{path} sets no CONFIG = {kind.__name__}(...): see configs/ for files that do")
    return config


def read_run(folder: Path) -> TrainConfig:
    """The config that a run was started with. Raises UserError for one of an earlier version, which cannot go on."""
    values = dict(read_json(folder / STORED))
    try:
        if version_of(values) < VERSION:
            raise UserError(
                f"an earlier version trained it, so it cannot go on: start a run from its weights, --init-from {folder}"
            )
        values.pop(KEY)
        return from_json(TrainConfig, values)
    except UserError as error:
        raise UserError(f"{folder / STORED}: {error}") from error


def read_with_config(
    options: type[T], argv: list[str], prog: str, kind: type = TrainConfig, example: str = "nano"
) -> T:
    """Options of a command whose first argument names a config, the defaults of the settings; `options(config)` makes them.

    Without one, --help shows the settings with the defaults of the library.
    """
    if argv in (["-h"], ["--help"]):
        return read_options(options, argv, f"{prog} CONFIG")
    if not argv or argv[0].startswith("-"):
        raise UserError(f"the first argument is the config file, as in: {prog} {example}")
    return read_options(options, argv[1:], f"{prog} {argv[0]}", default=options(load_config(argv[0], kind)))
