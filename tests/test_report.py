"""vaelab report: what the pages say, that they are safe, and that a browser shows them without an error."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import once
from vaelab import runs
from vaelab.cli import main
from vaelab.core.errors import UserError
from vaelab.core.words import number
from vaelab.evaluation.comparison.configurations import interval
from vaelab.figures.pixels import save_png
from vaelab.report import gallery, page, pictures, run, sweep

EVIL = "<script>alert(1)</script>"


SMALL = ("dataset=fake", "dataset.image_shape=[1,8,8]", "dataset.size=96", "trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def made(shared) -> Path:
    """A folder with a run, and with a sweep of two configurations with two seeds each."""

    def make(folder: Path) -> None:
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            few = {name: gallery.FIGURES[name] for name in ("reconstructions", "samples")}
            patch.setattr(gallery, "FIGURES", few)
            short = (*SMALL, "trainer.max_epochs=2")
            assert main(["train", *short, "model=vae", "seed=3", "run.dir=run"]) == 0
            assert main(["train", *short, "-m", "model=beta", "model.beta=1,4", "seed=0,1", "sweep.dir=swept"]) == 0

    return once(shared / "reported", make)


@pytest.fixture
def trained(made, tmp_path, monkeypatch) -> Path:
    """The folder of a run of one's own, with four figures and one that a command drew."""
    monkeypatch.chdir(tmp_path)
    folder = Path("run")
    shutil.copytree(made / "run", folder)
    for path in (folder / "figures").glob("*.png"):
        path.unlink()
    (folder / "report.html").unlink()
    for name in ("reconstructions", "samples", "curves", "traversals", "<b>mine"):
        save_png(torch.full((40, 900, 3), 200, dtype=torch.uint8), folder / "figures" / f"{name}.png")
    return folder


@pytest.fixture
def swept(made, tmp_path, monkeypatch) -> Path:
    """The folder of a sweep of one's own, and in it a job that failed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "swept", "swept")
    Path("swept/report.html").unlink()
    failed = Path("swept/10-beta-fake")
    failed.mkdir()
    (failed / "summary.json").write_text(json.dumps({"status": "failed", "error": f"lr={EVIL} is too much"}))
    return Path("swept")


def change(folder: Path, **values: object) -> None:
    """Changes entries of a run's summary.json."""
    runs.write_summary(folder, runs.read_summary(folder) | values)


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


# --- a run ------------------------------------------------------------------------------------


def test_a_run_page_has_its_parts_in_order(trained):
    text = run.build(trained, None)
    assert headings(text) == [
        *("Verdicts", "Final metrics", "Training", "Reconstructions", "Samples", "Latent space"),
        *("Made by commands", "Run it again"),
    ]
    summary = runs.read_summary(trained)
    for part in ("train", "val", "test"):
        assert f">{number(summary['metrics'][f'{part}/elbo'])}<" in text
    for fact in (
        f"{summary['model']['parameters']:,}",
        "finished",
        "VAE",
        summary["data"]["class"],
        summary["commit"][:12],
    ):
        assert fact in text
    assert "nats per image" in text
    assert f"epoch {summary['best']['epoch']}, the best by val/elbo" in text


def test_a_codebooks_figures_have_their_unit(trained):
    change(trained, metrics={"test/vq": 8.9, "test/commitment": 35.6})
    text = run.build(trained, None)
    for name in ("vq", "commitment"):
        assert re.search(rf'{name}</th>.*?<td class="unit">squared distance, sum per image</td>', text)


def test_every_figure_of_the_run_folder_is_there_once(trained):
    text = run.build(trained, None)
    sources = re.findall(r'<img src="data:image/png;base64,([^"]+)" width="(\d+)" height="(\d+)" alt="([^"]+)"', text)
    assert len(sources) == len(list((trained / "figures").glob("*.png"))) == 5
    assert ("900", "40") in {size[1:3] for size in sources}


def test_captions_are_one_sentence_and_name_every_figure_of_training():
    names = [name for texts in pictures.CAPTIONS.values() for name in texts]
    assert {
        *("curves", "schedule", "kl_per_dim", "code_usage", "reconstructions", "errors", "uncertainty"),
        *("samples", "real_and_generated", "classes", "levels", "data"),
        *("traversals", "manifold", "interpolations", "latents", "dimensions", "codes"),
        *("code_vectors", "code_patches", "code_maps", "code_levels", "roc"),
        *("temperatures", "nearest", "prior_loss"),
        *("marginals", "correlations", "lines"),
    } == set(names)
    for texts in (*pictures.CAPTIONS.values(), sweep.KINDS, pictures.COMMANDS):
        for _, caption in texts.values():
            assert caption.endswith(".")
            assert caption.count(".") == 1


def test_pictures_of_commands_have_a_caption_and_others_their_name(tmp_path):
    for name in ("traverse", "mine"):
        save_png(torch.zeros(4, 4, 3, dtype=torch.uint8), tmp_path / f"{name}.png")
    ((heading, shown),) = pictures.groups(tmp_path, pictures.CAPTIONS)
    assert heading == pictures.OTHERS
    assert [(figure.name, figure.title) for figure in shown] == [
        ("mine", "mine"),
        ("traverse", "Traversal of an image"),
    ]
    assert "vaelab traverse" in shown[1].caption


def test_a_figure_is_as_large_as_its_resolution_says(tmp_path):
    from vaelab.figures import style

    figure, _ = style.new(5, 2)
    style.save(figure, tmp_path / "a.png")
    assert page.picture(tmp_path / "a.png")[1:] == (480, 192)


def test_findings_of_training_and_evaluation_are_said_with_their_remedy(trained):
    finding = {"code": "posterior_collapse", "evidence": "KL is 0.1", "remedy": "warm beta up"}
    change(trained, findings=[finding])
    text = run.build(trained, None)
    for said in ("posterior collapse", "In training: KL is 0.1.", "Remedy: warm beta up."):
        assert said in text
    assert "Nothing found" not in text
    evaluation = {
        "split": "test",
        "images": 10,
        "checkpoint": {"name": "best", "epoch": runs.read_summary(trained)["best"]["epoch"]},
        "figures": {"likelihood/elbo": -12.25, "likelihood/elbo_se": 0.125, "latents/other": 7.5},
        "findings": [finding | {"evidence": "no dimension is active"}],
        "verdicts": {"latents": "collapsed"},
    }
    runs.write_evaluation(trained, evaluation)
    text = run.build(trained, None)
    assert text.count('class="notice warn"') == 1
    assert text.count("Remedy: warm beta up.") == 1
    for said in ("In evaluation: no dimension is active.", "latents: collapsed", "-12.250", "0.125", "7.500"):
        assert said in text
    evaluation["checkpoint"]["epoch"] += 1
    runs.write_evaluation(trained, evaluation)
    assert "-12.250" not in run.build(trained, None)


def test_without_validation_images_the_page_says_what_is_shown(trained):
    summary = runs.read_summary(trained)
    metrics = {name: value for name, value in summary["metrics"].items() if not name.startswith("val/")}
    assert "Validation images, what the model makes" in run.build(trained, None)
    change(trained, data=summary["data"] | {"val": 0}, metrics=metrics)
    text = run.build(trained, None)
    assert "Training images, what the model makes" in text
    assert "no images were held out" in text
    assert "alidation images" not in text
    assert "train is of epoch 2" in text


def test_nothing_found_is_said_only_of_a_run_without_findings(trained):
    assert runs.read_summary(trained)["findings"] is None  # it ended before anything was judged
    text = run.build(trained, None)
    assert "Nothing found" not in text
    assert "Not judged" in text
    change(trained, findings=[], steps=200)
    text = run.build(trained, None)
    assert "Nothing found" in text
    assert "Not judged" not in text


@pytest.mark.parametrize(
    ("status", "word"), [("interrupted", "interrupted"), ("diverged", "diverged"), ("trained", "unfinished")]
)
def test_a_run_that_is_not_finished_says_so(trained, status, word):
    change(trained, status=status, error="loss is nan at step 3")
    text = run.build(trained, None)
    assert f"This run is {word}." in text
    assert "loss is nan at step 3" in text
    assert (f"vaelab train resume={trained}" in text) == (status != "diverged")


def test_a_run_without_a_summary_has_a_page(trained):
    (trained / "summary.json").unlink()
    text = run.build(trained, None)
    assert "This run is unfinished." in text
    assert "Nothing found" not in text


def test_the_command_runs_the_same_again(train):
    first = train("model=beta", "model.beta=2.5", "seed=7", "run.name='a b'")
    config = runs.read_config(first.run)
    words = shlex.split(run.again(config))
    assert words[:2] == ["vaelab", "train"]
    assert main([*words[1:], "run.dir=again"]) == 0
    again = runs.read_config(Path("again"))
    for section in ("seed", "model", "dataset", "optimizer", "schedule", "callbacks"):
        assert again[section] == config[section]
    assert again["run"]["name"] == "a b"
    assert runs.read_summary(Path("again"))["metrics"] == first.summary["metrics"]


def test_the_command_names_a_seed_that_was_not_given(trained):
    config = runs.read_config(trained)
    config["run"]["overrides"] = ["model=vae"]
    assert shlex.split(run.again(config))[2:] == ["model=vae", "seed=3"]


def test_a_damaged_evaluation_is_named(trained, capsys):
    whole = {"split": "test", "images": 10, "checkpoint": {"name": "last", "epoch": 2}, "figures": {}}
    path = trained / "evaluation.json"
    for part in ("checkpoint", "figures", "images"):
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != part}))
        assert main(["report", f"run={trained}", "figures=false", "device=cpu"]) == 2
        err = capsys.readouterr().err
        assert f"{path} is damaged: it has no '{part}'" in err
        assert "Traceback" not in err
    path.write_text(json.dumps(whole | {"figures": {"likelihood/elbo": "many"}}))
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
        run.build(trained, None)


@pytest.mark.parametrize("place", ["encoder", "decoder"])
def test_a_model_that_is_not_finite_has_a_page_without_an_explorer(trained, place):
    path = trained / "checkpoints" / "best.ckpt"
    saved = torch.load(path, weights_only=True)
    name = next(name for name in saved["state_dict"] if name.startswith(place) and name.endswith("weight"))
    saved["state_dict"][name].fill_(torch.nan)
    torch.save(saved, path)
    before = (trained / "figures" / "curves.png").read_bytes()
    assert main(["report", f"run={trained}", "device=cpu"]) == 0
    text = (trained / "report.html").read_text()
    assert "This model is not sound." in text
    assert "Explorer" not in headings(text)
    assert (trained / "figures" / "curves.png").read_bytes() != before
    assert "This model is not sound." not in run.build(trained, None)


# --- safety -----------------------------------------------------------------------------------


def test_text_of_users_is_escaped(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["run"] |= {"name": EVIL, "overrides": [f"run.name='{EVIL}'"]}
    (trained / "config.yaml").write_text(yaml.safe_dump(config))
    change(trained, status="failed", error=EVIL, findings=[{"code": EVIL, "evidence": EVIL, "remedy": EVIL}])
    text = run.build(trained, None)
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>mine" not in text


def test_the_explorers_data_cannot_end_its_element(trained, tmp_path, monkeypatch):
    home = tmp_path / "page"
    shutil.copytree(page.HERE, home)
    (home / "explorer.js").write_text("const here = 1;")
    (home / "explorer.css").write_text("#explorer { color: red }")
    monkeypatch.setattr(page, "HERE", home)
    monkeypatch.setattr(run, "HERE", home)
    data = {"names": [f"</script>{EVIL}<!--", "é'\"\u2028"]}
    text = run.build(trained, data)
    found = re.search(r'<div id="explorer"></div>.*?<script [^>]*id="explorer-data">(.*?)</script>', text, re.DOTALL)
    assert found
    assert json.loads(found[1]) == data
    assert "const here = 1;" in text
    assert "#explorer { color: red }" in text
    assert headings(text)[1:4] == ["Final metrics", "Explorer", "Training"]
    (home / "explorer.js").unlink()
    assert 'id="explorer"' not in run.build(trained, data)
    with pytest.raises(ValueError, match="JSON"):
        page.render("run.html", **{**_blank(), "explorer": {"z": float("nan")}})


def _blank() -> dict:
    names = ("kind", "title", "again", "versions", "config", "version")
    lists = ("facts", "notices", "groups")
    return dict.fromkeys(names, "") | dict.fromkeys(lists, ()) | {"metrics": {"rows": ()}, "evaluations": ()}


def test_a_page_asks_for_nothing_outside_itself(trained, swept):
    (trained / "report.html").write_text("x")
    for text in (run.build(trained, None), sweep.build(swept)):
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
        assert policy
        assert "default-src 'none'" in policy[1]
        assert "img-src data:;" in policy[1]
        assert not re.search(r'(src|href)="(?!data:|\d+-beta-fake/report\.html)', text)
        assert not re.search(r"@import|url\(", text)


# --- a sweep ----------------------------------------------------------------------------------


def test_a_sweep_page_says_what_differs_and_what_came_out(swept):
    (swept / "0-beta-fake" / "report.html").unlink()
    text = sweep.build(swept)
    assert re.search(r'<th scope="row">model\.beta</th><td>1, 4</td>', text)
    assert re.search(r'<th scope="row">seed</th><td>0, 1</td>', text)
    assert '<a href="2-beta-fake/report.html">2-beta-fake</a>' in text
    assert 'href="0-beta-fake' not in text
    assert "0-beta-fake<small>no report</small>" in text
    assert "vaelab report run=FOLDER" in text
    seconds = sum(runs.read_summary(swept / f"{i}-beta-fake")["seconds"] for i in range(4))
    assert f"</span> {run.duration(seconds)}</span>" in text
    names = re.findall(r'<th scope="row" data-value="\d+">(?:<a [^>]*>)?([^<]+)', text)
    assert names == ["0-beta-fake", "1-beta-fake", "2-beta-fake", "3-beta-fake", "10-beta-fake"]
    for i in range(4):
        metrics = runs.read_summary(swept / f"{i}-beta-fake")["metrics"]
        assert f'data-value="{metrics["test/elbo"]}">{number(metrics["test/elbo"])}</td>' in text
    assert text.count("<figcaption>") == 8 + 4  # two pictures of each run, four of the sweep
    assert "10-beta-fake: failed" in text
    assert EVIL not in text
    assert "lr=&lt;script&gt;" in text


def test_a_sweep_page_shows_what_its_runs_evaluations_have(swept):
    run = swept / "1-beta-fake"
    point = {"name": "best", "epoch": runs.read_summary(run)["best"]["epoch"], "step": 6}
    figures = {"likelihood/log_p_hat": -51.25, "likelihood/elbo": -52.5}
    about = {"checkpoint": point, "split": "test", "images": 19, "seed": 0, "subject": {}, "protocols": {}}
    runs.write_evaluation(run, about | {"figures": figures})
    text = sweep.build(swept)
    assert "likelihood/<wbr>log_p_hat<" in text
    assert 'data-value="-51.25">-51.250</td>' in text
    assert "likelihood/<wbr>elbo<" not in text  # the end of training has it


def test_what_was_swept_is_what_was_set_and_not_what_followed_from_it(swept):
    for i in range(4):  # as if an option of the user's own had been swept, which brings a β of its own
        config = swept / f"{i}-beta-fake" / "config.yaml"
        config.write_text(re.sub(r"model\.beta=(\d)", r"experiment=trial\1", config.read_text()))
    text = sweep.build(swept)
    assert '<th scope="row">experiment</th><td>trial1, trial4</td>' in text
    assert '<th scope="row">model.beta</th>' not in text
    assert re.search(r"differ, too, along with them: [^<]*\bmodel\.beta\b", text), re.search(r"differ, too[^<]*", text)


def test_means_are_over_seeds_with_their_interval(swept):
    text = sweep.build(swept)
    for pair in ((0, 1), (2, 3)):
        elbos = [runs.read_summary(swept / f"{i}-beta-fake")["metrics"]["test/elbo"] for i in pair]
        mean, low, _, n = interval(elbos)
        assert low is not None
        assert n == 2
        assert f"{number(mean)} ± {number(mean - low)}" in text
    shutil.rmtree(swept / "1-beta-fake")
    shutil.rmtree(swept / "3-beta-fake")
    assert "Means over seeds" not in sweep.build(swept)


def test_the_figures_of_a_sweep_are_of_its_runs(swept, monkeypatch):
    from vaelab.figures import style, sweeps

    asked = {}
    one = style.new(3, 2)[0]
    monkeypatch.setattr(sweeps, "rate_distortion", lambda curves, _: asked.setdefault("curves", curves) and one)
    monkeypatch.setattr(sweeps, "parallel", lambda *given: asked.setdefault("parallel", given) and one)
    assert set(sweep.draw(swept, ("svg",))) == {"rate_distortion", "parallel", "against-model.beta", "overlaid"}
    assert (swept / "figures" / "parallel.svg").is_file()
    metrics = [runs.read_summary(swept / f"{i}-beta-fake")["metrics"] for i in range(4)]
    (curve,) = asked["curves"]
    means = {(label, round(rate, 9), round(distortion, 9)) for label, rate, distortion, _ in curve}
    assert means == {
        (
            f"beta={beta}",
            *(round((metrics[i][n] + metrics[i + 1][n]) / 2, 9) for n in ("test/kl", "test/reconstruction")),
        )
        for beta, i in ((1, 0), (4, 2))
    }
    columns, rows, colour_by, of = asked["parallel"]
    assert of == ""
    assert "test/loss" not in columns  # of another beta it is another loss
    assert [*columns][:3] == ["beta", "seed", "test/elbo"]
    assert columns[colour_by] == "test/elbo"
    assert [row[:3] for row in rows] == [[b, i % 2, metrics[i]["test/elbo"]] for i, b in enumerate((1, 1, 4, 4))]
    assert headings(sweep.build(swept)).count("The runs at a glance") == 1


@pytest.fixture
def mixed(swept) -> Path:
    """The sweep with a run of another model, and two on other data, whose numbers are far off."""
    for name, source, model, data in (
        ("11-vae-fake", 0, "VAE", "Fake"),
        ("12-vae-digits", 0, "VAE", "Digits"),
        ("13-beta-digits", 2, "BetaVAE", "Digits"),
    ):
        shutil.copytree(swept / f"{source}-beta-fake", swept / name)
        path = swept / name / "config.yaml"
        config = yaml.safe_load(path.read_text())
        home = config["model"]["_target_"].rpartition(".models.")[0]
        config["model"]["_target_"] = f"{home}.models.{model}"
        config["dataset"]["_target_"] = f"{home}.datasets.{data}"
        path.write_text(yaml.safe_dump(config))
        if "digits" in name:
            metrics = runs.read_summary(swept / name)["metrics"]
            change(swept / name, metrics={key: value - 1000 for key, value in metrics.items()})
    return swept


def test_metrics_are_drawn_against_what_was_swept_and_curves_on_top_of_one_another(swept, monkeypatch):
    from vaelab.figures import style, trends

    asked = {}
    monkeypatch.setattr(trends, "against", lambda *given: asked.setdefault("against", given) and style.new(3, 2)[0])
    monkeypatch.setattr(trends, "overlaid", lambda *given: asked.setdefault("curves", given) and style.new(3, 2)[0])
    sweep.draw(swept)
    key, panels, _ = asked["against"]
    assert key == "beta"
    assert list(panels)[:2] == ["likelihood/elbo", "likelihood/kl"]
    ((_, points),) = panels["likelihood/elbo"].items()  # nothing else was swept
    assert [point[0] for point in points] == [1, 4]
    for first, (_, *shown) in zip((0, 2), points, strict=True):
        elbos = [runs.read_summary(swept / f"{i}-beta-fake")["metrics"]["test/elbo"] for i in (first, first + 1)]
        assert shown == pytest.approx(interval(elbos)[:3])
    curves = asked["curves"][0]["val/elbo"]
    assert [label for label, *_ in curves] == ["beta=1", "beta=1", "beta=4", "beta=4"]
    for i, (_, x, y) in enumerate(curves):
        rows = [row for row in runs.read_metrics(swept / f"{i}-beta-fake") if "val/elbo" in row]
        assert x.tolist() == [1, 2]
        assert y.tolist() == [row["val/elbo"] for row in rows]


def test_runs_that_cannot_be_compared_have_figures_of_their_own(mixed, monkeypatch):
    from vaelab.figures import style, sweeps

    curves, parallels = {}, {}
    monkeypatch.setattr(sweeps, "rate_distortion", lambda c, title: curves.setdefault(title, c) and style.new(3, 2)[0])
    monkeypatch.setattr(sweeps, "parallel", lambda *given: parallels.setdefault(given[3], given) and style.new(3, 2)[0])
    (mixed / "figures" / "parallel.png").write_bytes(b"of an earlier time")
    made = sweep.draw(mixed)
    data = sorted({text.partition(":")[0] for text in curves})
    assert len(data) == 2
    kinds = ("rate_distortion", "parallel", "overlaid")
    against = {f"against-{key}-{name}" for name in data for key in ("model", "model.beta")}
    assert (
        {f"{kind}-{name}" for kind in kinds for name in data}
        <= set(made)
        <= {
            *(f"{kind}-{name}" for kind in kinds for name in data),
            *against,
        }
    )
    assert not (mixed / "figures" / "parallel.png").exists()
    text = sweep.build(mixed)
    assert all(f'id="{name}"' in text for name in made)
    for given in parallels.values():
        elbos = [row[given[0].index("test/elbo")] for row in given[1]]
        assert max(elbos) - min(elbos) < 100
    (of_fake,) = (found for title, found in curves.items() if "fake" in title)
    assert sorted(len(family) for family in of_fake) == [1, 2]  # the two betas are a curve, the vae is none of it


def test_the_axes_of_a_sweep_are_what_its_finished_runs_differ_in(swept, monkeypatch):
    from vaelab.figures import style, sweeps

    columns = []
    monkeypatch.setattr(sweeps, "parallel", lambda names, *_: columns.extend(names) or style.new(3, 2)[0])
    for i in (2, 3):
        change(swept / f"{i}-beta-fake", status="diverged")
    sweep.draw(swept)
    assert columns[:2] == ["seed", "test/elbo"]  # all runs of another beta diverged
    assert "test/loss" not in columns  # at beta = 1 it is -ELBO
    columns.clear()
    metrics = runs.read_summary(swept / "0-beta-fake")["metrics"]
    change(swept / "0-beta-fake", metrics=metrics | {"test/loss": metrics["test/loss"] + 1})
    sweep.draw(swept)
    assert "test/loss" in columns


def test_a_sweep_of_failures_has_a_page(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}-x").mkdir()
        (tmp_path / f"{i}-x" / "summary.json").write_text(json.dumps({"status": "failed", "error": f"why {i}"}))
    text = sweep.build(tmp_path)
    assert "why 0" in text
    assert "why 1" in text


def test_a_damaged_run_is_named_and_stops_no_page(swept):
    (swept / "1-beta-fake" / "summary.json").write_text("{")
    text = sweep.build(swept)
    assert "1-beta-fake" in text
    assert "is damaged" in text


# --- the command ------------------------------------------------------------------------------


def test_the_command_writes_the_page_of_a_run_and_prints_where(trained, capsys):
    (trained / "report.html").write_text("old")
    assert main(["report", f"run={trained}", "figures=false", "device=cpu"]) == 0
    assert f"report: {trained / 'report.html'}" in capsys.readouterr().out
    assert (trained / "report.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in trained.iterdir() if "tmp" in path.name] == []


@pytest.mark.parametrize("figures", [True, False])
def test_figures_are_redrawn_unless_told_not_to(trained, monkeypatch, figures):
    def redraw(folder, model, data, rows, drawing) -> dict:
        save_png(torch.zeros(7, 31, 3, dtype=torch.uint8), folder / "figures" / "curves.png")
        return {}

    monkeypatch.setattr("vaelab.report.build.redraw", redraw)
    assert main(["report", f"run={trained}", "device=cpu", f"figures={figures}"]) == 0
    assert ('width="31" height="7"' in (trained / "report.html").read_text()) == figures


def test_the_command_takes_a_sweep_and_another_place(swept, capsys):
    (swept / "0-beta-fake" / "report.html").write_text("x")
    Path("elsewhere").mkdir()
    assert main(["report", f"run={swept}", "figures=false", "out=elsewhere/a b.html"]) == 0
    assert "report: elsewhere/a b.html" in capsys.readouterr().out
    assert 'href="../swept/0-beta-fake/report.html"' in Path("elsewhere/a b.html").read_text()
    assert not (swept / "report.html").exists()


def test_a_run_that_has_no_checkpoint_has_a_report(trained, capsys):
    shutil.rmtree(trained / "checkpoints")
    change(trained, status="diverged", error="nan")
    assert main(["report", f"run={trained}"]) == 0
    assert "has no checkpoint" in capsys.readouterr().out
    assert "This run is diverged." in (trained / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out=page.pdf"], "out=page.pdf: name a file that ends in .html"),
        (["out=nowhere/page.html"], "out=nowhere/page.html"),
        (["checkpoint=first"], "checkpoint="),
        (["figures=maybe"], "figures='maybe': must be true or false or a mapping"),
        (["figure=false"], "figure: no such key"),
        (["run=nothing"], "nothing is no run"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(trained, capsys, arguments, said):
    assert (
        main(["report", f"run={trained}", *arguments][: 1 if arguments[0].startswith("run=") else 2] + arguments) == 2
    )
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not (trained / "report.html").exists()


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        assert os.environ.get("CI") != "true", "the report's tests need chromium on the PATH"
        pytest.skip("no chromium on the PATH")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture
def opened(browser):
    """Opens a file at a width in a colour scheme; at the end, nothing may have gone wrong or been asked for."""
    problems, pages = [], []

    def show(path: Path, width: int, scheme: str = "light"):
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        address = path.resolve().as_uri()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on(
            "request",
            lambda request: (
                problems.append(request.url) if request.url != address and not request.url.startswith("data:") else None
            ),
        )
        tab.goto(address)
        pages.append(tab)
        return tab

    yield show
    for tab in pages:
        tab.close()
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_pages_load_without_an_error_and_fit_their_width(trained, swept, opened, width, scheme):
    change(trained, status="failed", error="x" * 300)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["run"] |= {"name": f"{'long' * 40}{EVIL}", "overrides": [f"run.name={'y' * 200}"]}
    (trained / "config.yaml").write_text(yaml.safe_dump(config))
    page.save(trained / "report.html", run.build(trained, None))
    page.save(swept / "report.html", sweep.build(swept))
    for folder in (trained, swept):
        tab = opened(folder / "report.html", width, scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("[...document.images].filter(i => i.src).every(i => i.complete && i.naturalWidth)")
        paper, ink = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
        light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink))
        assert (light > dark) == (scheme == "light")
        assert abs(light - dark) > 400


def test_figures_enlarge_and_close_with_the_keyboard(trained, opened):
    page.save(trained / "report.html", run.build(trained, None))
    tab = opened(trained / "report.html", 360)
    tab.locator("button.zoom").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("dialog[open] img").bounding_box()["width"] >= 900
    tab.keyboard.press("Escape")
    assert tab.locator("dialog[open]").count() == 0


def test_close_does_not_cover_the_enlarged_figure(trained, opened):
    page.save(trained / "report.html", run.build(trained, None))
    tab = opened(trained / "report.html", 360)
    tab.locator("button.zoom").first.click()
    close, shown = (tab.locator(f"dialog {part}").bounding_box() for part in (".close", ".scroll"))
    assert close["y"] + close["height"] <= shown["y"]


def test_tables_that_are_cut_show_it(swept, opened):
    page.save(swept / "report.html", sweep.build(swept))
    tab = opened(swept / "report.html", 360)
    table = tab.locator("#runs .scroll")
    assert table.evaluate("e => e.scrollWidth > e.clientWidth")
    place = table.bounding_box()
    edge = {"x": place["x"] + place["width"] - 2, "y": place["y"] + 2, "width": 1, "height": 1}

    def brightness() -> int:
        from io import BytesIO

        from PIL import Image

        return min(Image.open(BytesIO(tab.screenshot(clip=edge, full_page=True))).convert("RGB").getpixel((0, 0)))

    assert brightness() < 220
    table.evaluate("e => { e.scrollLeft = e.scrollWidth }")
    assert brightness() > 240


def test_tables_of_runs_sort(swept, opened):
    page.save(swept / "report.html", sweep.build(swept))
    tab = opened(swept / "report.html", 1200)

    def column() -> list[str]:
        return [text.split()[0] for text in tab.locator("table.sortable tbody tr th").all_inner_texts()]

    elbo = {i: runs.read_summary(swept / f"{i}-beta-fake")["metrics"]["test/elbo"] for i in range(4)}
    up = [f"{i}-beta-fake" for i in sorted(elbo, key=lambda i: elbo[i])]
    tab.get_by_role("button", name="test/elbo").click()
    assert column() == [*up, "10-beta-fake"]
    tab.get_by_role("button", name="test/elbo").click()
    assert column() == [*up[::-1], "10-beta-fake"]
    tab.get_by_role("button", name="run", exact=True).click()
    assert column()[-1] == "10-beta-fake"
    assert column()[0] == "0-beta-fake"
