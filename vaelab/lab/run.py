"""A trained run in Python: what the commands that take `run=` do, as methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vaelab import runs
from vaelab.core.errors import UserError
from vaelab.lab import arguments
from vaelab.lab.show import Numbers, Picture, Table
from vaelab.runs import Files

if TYPE_CHECKING:
    from torch import Tensor

    from vaelab.datasets.base import ImageData
    from vaelab.models import Model
    from vaelab.nn.modules import Maker
    from vaelab.runs.trained import Trained

Checkpoint = Literal["best", "last"]


def open_run(
    run: str | Path | Run = "last",
    *,
    checkpoint: Checkpoint = "best",
    device: str = "auto",
    root: str | Path | None = None,
    prior: str | None = None,
    trust: bool = False,
    encoder: Maker | None = None,
    decoder: Maker | None = None,
) -> Run:
    """Opens a trained run, whose model and data are read when first asked for.

    run: a run folder, or `last`, the newest one below ./outputs. checkpoint: `best` or `last`. device: `auto`, or as
    torch names it. root: where the run's own data lies, if it has moved. prior: one that was fitted to the run, in the
    place of the model's own. trust: build what the folder names, whatever it is: only if you trust its maker. encoder,
    decoder: those that were handed to `vaelab.train`, where they are in no file.
    Raises UserError if there is no such run.
    """
    parts = {name: part for name, part in {"encoder": encoder, "decoder": decoder}.items() if part is not None}
    folder = run.folder if isinstance(run, Run) else runs.find(run)
    return Run(folder, checkpoint, device, root, prior, trust, parts)


class Run:
    """A run folder, its model, and what the lab does with them.

    Images go in as the model was trained on them: 8 or 16 bits, or floats from 0 (black) to 1 (white), [N, C, H, W],
    [N, H, W, C] or [N, H, W]; vectors [N, D] and sequences in the units of the training data. They come out as float32
    [N, C, H, W] in [0, 1], or as vectors and sequences in their units. Rows of a table go in as a data frame, columns
    by name, mappings or a file, and come out as a `Table`. Labels are class numbers or names, [N], or one
    for all.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint = "best",
        device: str = "auto",
        root: str | Path | None = None,
        prior: str | None = None,
        trust: bool = False,
        parts: dict[str, Maker] | None = None,
    ):
        self.folder = Path(folder)
        self.checkpoint: Checkpoint = checkpoint
        self.prior = prior
        self._device, self._root, self._trust, self._parts = device, root, trust, parts or {}

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.summary.get('status', 'unfinished')})"

    def _repr_html_(self) -> str:
        return (
            f"<p><code>{self.folder}</code>, {self.summary.get('status', 'unfinished')}</p>{self.final._repr_html_()}"
        )

    # --- what the folder holds ----------------------------------------------------------------

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config that the run was trained with."""
        return runs.read_config(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json: status, final metrics, sizes, health, versions."""
        return runs.read_summary(self.folder)

    @property
    def final(self) -> Numbers:
        """The final metrics by name: `test/elbo`, nats per image, and others."""
        return Numbers(self.summary.get("metrics", {}))

    @property
    def metrics(self) -> Table:
        """The metrics by step, a row per step that was logged: pandas.DataFrame(run.metrics) makes a frame of them."""
        return Table(runs.read_metrics(self.folder))

    @property
    def evaluation(self) -> Numbers:
        """The metrics of the last `evaluate` of the test images; empty before."""
        path = Files(self.folder).evaluation("test", self.prior)
        return Numbers(runs.read_evaluation(self.folder, "test", self.prior)["figures"] if path.is_file() else {})

    @property
    def figures(self) -> dict[str, Picture]:
        """The figures in the folder, by name; `report` draws them."""
        return {path.stem: Picture(path) for path in sorted(Files(self.folder).figures.glob("*.png"))}

    @cached_property
    def trained(self) -> Trained:
        """The opened run: model, data, classes."""
        from vaelab.runs.trained import Trained

        with self._handed_over():
            root = None if self._root is None else str(self._root)
            return Trained(self.folder, self.checkpoint, self._device, root, self.prior, self._trust)

    @property
    def model(self) -> Model:
        """The trained model, in eval mode: a module of torch."""
        return self.trained.model

    @property
    def data(self) -> ImageData:
        """The run's data: `data.train`, `data.val` and `data.test` are read by `batch(index)`."""
        return self.trained.data

    # --- arrays in, arrays out ----------------------------------------------------------------

    def encode(self, x: Any, labels: Any = None) -> Tensor:
        """Encodes examples to their codes, on the CPU: [N, d], means of q(z|x), or indices, [N, h, w].

        Raises UserError for examples of another shape than the model takes.
        """
        from vaelab.inference import coding
        from vaelab.lab import examples

        seen = examples.as_model_sees(self.trained, x)
        return coding.codes(self.model, seen, examples.labels_of(self.trained, labels, len(seen)))

    def decode(self, codes: Any, labels: Any = None) -> Tensor | Table:
        """Decodes codes, as `encode` gives them, to mean images; of a table to rows."""
        import torch

        from vaelab.lab import examples

        given = torch.as_tensor(codes)
        if given.shape[1:] != self.model.layout.shape:
            shape = ", ".join(map(str, self.model.layout.shape))
            raise UserError(f"codes: {list(given.shape)}, and the model's are [N, {shape}]")
        size = self.model.layout.codes
        if size and (given.is_floating_point() or (given.numel() and not 0 <= given.min() <= given.max() < size)):
            raise UserError(f"codes: the model's are whole numbers from 0 to {size - 1}")
        labels = examples.labels_of(self.trained, labels, len(given))
        return examples.decoded(self.trained, given, labels)

    def reconstruct(self, x: Any, labels: Any = None) -> Tensor | Table:
        """Decodes the codes of examples, without sampling."""
        return self.decode(self.encode(x, labels), labels)

    def sample(
        self,
        n: int = 16,
        label: Any = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Tensor | Table:
        """Decodes n draws from the prior to mean images; of a table to rows, drawn from p(x|z).

        label: a class, or one for each; None takes every class in turn, where samples are of a class. temperature:
        below 1 more typical and less varied. top_k: of codes, only so many of the most probable. The first draws of a
        seed are the same however many are asked for.
        Raises UserError if the model has no prior, or no such class.
        """
        import torch

        from vaelab.inference import coding
        from vaelab.lab import examples

        if not isinstance(n, int) or n < 1:
            raise UserError(f"n={n!r}: a number of samples, 1 or more, is wanted")
        model = self.model
        model.require_prior().check_sampling(temperature, top_k, type(model).__name__)
        in_turn = label is None and model.told
        labels = model.in_turn(n) if in_turn else examples.labels_of(self.trained, label, n)
        codes = torch.cat(list(coding.draws(model, n, seed, temperature, labels, top_k)))
        return examples.decoded(self.trained, codes, labels, seed)

    # --- what the commands do -----------------------------------------------------------------

    def resume(self, **options: Any) -> Run:
        """Goes on with the training, exactly where it stopped: `max_epochs=100` trains a finished run longer.

        options: as of `vaelab.train`; they replace the run's own.
        """
        from vaelab.lab import training

        given = arguments.of_command({"resume": self.folder, "trust": self._trust or None})
        with self._handed_over():
            training.run([*arguments.of_training(options, known=arguments.keys_in(self.config)), *given])
        return self._anew()

    def evaluate(
        self,
        sections: Sequence[str] | None = None,
        *,
        split: Literal["test", "val", "train"] = "test",
        ood: str | None = None,
        metric: str | None = None,
        **options: Any,
    ) -> Numbers:
        """Measures the model as `vaelab eval` does, writes evaluation.json, and returns the metrics.

        sections: what to measure, as in ["likelihood", "latents"]; all if None. split: of which images. ood: a data set
        whose images should be told from the run's own. metric: one of your own (`vaelab new metric`). options: further
        keys of conf/eval.yaml.
        Raises UserError for what cannot be measured.
        """
        given = {"sections": sections, "split": split, "ood": ood, "metric": metric, **options}
        return Numbers((self._do("eval", given) or {"figures": {}})["figures"])

    def report(self, **options: Any) -> Path:
        """Draws all figures and writes report.html, as `vaelab report` does. Returns the page's path.

        options: keys of conf/report.yaml.
        """
        return self._do("report", options)

    def traverse(
        self, dims: Sequence[int] | None = None, image: int | str | Path | None = None, **options: Any
    ) -> Picture:
        """Draws what each latent dimension changes in a picture. options: keys of conf/traverse.yaml."""
        return Picture(self._do("traverse", {"dims": dims, "image": image, **options}))

    def interpolate(self, start: int | str | Path = 0, to: int | str | Path = 1, **options: Any) -> Picture:
        """Draws the way from one image to another through the latent space. options: keys of conf/interpolate.yaml."""
        return Picture(self._do("interpolate", {"from": start, "to": to, **options}))

    def draw_samples(self, n: int = 64, **options: Any) -> Picture:
        """Draws a figure of samples. options: keys of conf/sample.yaml."""
        return Picture(self._do("sample", {"n": n, **options}))

    def draw_reconstructions(self, n: int = 16, **options: Any) -> Picture:
        """Draws images beside what the model makes of them. options: keys of conf/reconstruct.yaml."""
        return Picture(self._do("reconstruct", {"n": n, **options}))

    def fit_prior(self, prior: str | Mapping[str, Any] = "gmm", **options: Any) -> Run:
        """Fits a prior to the codes, as `vaelab prior` does. Returns the run with it.

        prior: the name of an option of conf/prior, or its keys with the name under "": {"": "gmm", "components": 20}.
        options: keys of conf/prior.yaml.
        """
        keys = dict(prior) if isinstance(prior, Mapping) else {"": prior}
        name = keys.pop("")
        self._do("prior", {"prior": name, **{f"prior.{key}": value for key, value in keys.items()}, **options})
        return self._anew(name)

    def export(self, out: str | Path | None = None, *, onnx: bool = False, **options: Any) -> Path:
        """Writes the weights as safetensors, and encoder and decoder as ONNX if asked. Returns the folder.

        options: keys of conf/export.yaml, such as hub="USER/NAME" for the Hugging Face hub.
        """
        return self._do("export", {"out": out, "onnx": onnx, **options})

    def score(self, folder: str | Path, out: str | Path = "scores.csv", **options: Any) -> Path:
        """Writes a table of how unlike the training images those of a folder are, as `vaelab score` does.

        options: keys of conf/score.yaml.
        """
        return self._do("score", {"input": folder, "out": out, **options})["scores"]

    def compress(self, folder: str | Path, out: str | Path, **options: Any) -> Path:
        """Writes the images of a folder as one small file. options: keys of conf/compress.yaml."""
        self._do("compress", {"input": folder, "out": out, **options})
        return Path(out)

    def decompress(self, file: str | Path, out: str | Path, **options: Any) -> Path:
        """Writes the images of a file of `compress` into a folder. options: keys of conf/decompress.yaml."""
        self._do("decompress", {"input": file, "out": out, **options})
        return Path(out)

    def impute(self, file: str | Path, out: str | Path, **options: Any) -> Path:
        """Fills in what is missing in a table or an array, a file. options: keys of conf/impute.yaml."""
        self._do("impute", {"input": file, "out": out, **options})
        return Path(out)

    def _do(self, name: str, given: Mapping[str, Any]) -> Any:
        """Runs a command on this run, and returns what its job returns; the command prints what it always does."""
        from vaelab.lab.commands import invoke

        known = {"checkpoint": self.checkpoint, "root": self._root, "trust": self._trust or None}
        known |= {} if self._device == "auto" else {"device": self._device}
        known |= {"prior": self.prior} if self.prior is not None and name in ("eval", "sample", "report") else {}
        with self._handed_over():
            return invoke(name, {"run": self.folder, **arguments.taken_by(name, known), **given})

    def _handed_over(self) -> Any:
        from vaelab.nn.modules import giving

        return giving(**self._parts)

    def _anew(self, prior: str | None = None) -> Run:
        prior = self.prior if prior is None else prior
        return Run(self.folder, self.checkpoint, self._device, self._root, prior, self._trust, self._parts)
