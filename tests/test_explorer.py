"""The report's explorer in a headless Chromium: what its page shows is what the model decodes."""

from __future__ import annotations

import base64
import copy
import functools
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import get_class
from torch import nn

from tests.test_conf import composed, options
from vaelab.core.config import build
from vaelab.core.pixels import to_unit
from vaelab.nn import coders, networks
from vaelab.nn.priors.pixelcnn import PixelCNN
from vaelab.report import explorer, portable

PAGE = Path(explorer.__file__).parent / "templates"
HTML = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><title>test</title><style>{css}</style><section id="explorer"></section>
<script type="application/json" id="explorer-data">{data}</script><script>{js}</script>"""
LIKELIHOODS = [
    name
    for name in options("likelihood")
    if get_class(composed(f"likelihood={name}")["likelihood"]["_target_"]).mean in portable._MEANS
]
"""Those whose mean the page can compute; of others a report has pictures made beforehand."""
MAP = ["conv", "resnet"]
CASES = [("vae", "mlp"), ("vae", "conv"), ("vae", "resnet"), ("vae", "burgess")]
CASES += [("cvae", "mlp"), ("ae", "conv"), *(("vqvae", network) for network in MAP)]
"""Every network's decoder, every kind of code, with and without labels."""


@functools.cache
def made(model: str, network: str, *overrides: str, shape=(1, 9, 13), classes=3):
    """An untrained model whose pictures have contrast and whose batch norms have seen data."""
    torch.manual_seed(1)
    small = [] if network == "burgess" else ["network.hidden_dims=[12,16]"]
    given = [f"model={model}", f"network={network}", *small, *overrides]
    if network == "burgess":
        shape = (shape[0], 64, 64)
    if model == "vqvae":
        given += ["model.num_embeddings=24", "model.embedding_dim=5"]
    else:
        given += ["model.latent_dim=12"]
    model = build(composed(*given)["model"], shape=shape, num_classes=classes)
    model.train()
    for _ in range(3):
        codes = draws(model, 32)
        model.decode(*codes)
    model.eval()
    if model.layout.codes:
        model.codebook.codes.data.normal_()
    with torch.no_grad():
        raw = model.decode(*draws(model, 32))
        model.decoder.body[-1].weight.mul_(0.5 / raw.std(0).mean())
    return model


def draws(model, count):
    """Codes and labels."""
    if model.layout.codes:
        return torch.randint(model.codebook.num_embeddings, (count, *model.layout.shape)), None
    return torch.randn(count, model.latent_dim), torch.arange(count) % model.num_classes


def payload(model, pixel_range=(0.0, 1.0), count=16):
    generator = torch.Generator().manual_seed(2)
    images = torch.empty(count, *model.shape).uniform_(*pixel_range, generator=generator)
    return explorer.payload(model, images, torch.arange(count) % model.num_classes, pixel_range)


def unit(model, code, label, pixel_range=(0.0, 1.0)):
    """The model's own picture of one code, [C, H, W] in [0, 1]."""
    code = torch.tensor(code).view(1, *model.layout.shape) if model.layout.codes else torch.tensor([code])
    with torch.no_grad():
        return to_unit(model.likelihood.mean(model.decode(code, torch.tensor([label]))), pixel_range)[0]


def grey(image):
    return (image * 255).round().permute(1, 2, 0).flatten().tolist()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium. Without one the tests fail where CI=true, and are left out on a machine of one's own."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Page:
    """A page with an explorer."""

    def __init__(self, tab):
        self.tab, self.errors = tab, []
        tab.on("console", lambda message: self.errors.append(message.text))
        tab.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, page: dict) -> Page:
        parts = {"css": (PAGE / "explorer.css").read_text(), "js": (PAGE / "explorer.js").read_text()}
        self.errors.clear()
        self.tab.set_content(HTML.format(**parts, data=json.dumps(page).replace("<", "\\u003c")))
        assert not self.errors
        self.tab.evaluate("vaelabExplorer.ready")
        return self

    def drawn(self) -> None:
        """Waits for the next frame, in which what a control has changed is drawn."""
        self.tab.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 20)))")

    def pixels(self) -> list[int]:
        self.drawn()
        assert not self.errors
        return self.tab.evaluate("vaelabExplorer.pixels()")

    def code(self) -> list[float]:
        return self.tab.evaluate("vaelabExplorer.code()")

    def slide(self, where: str, value: float) -> None:
        self.tab.locator(where).fill(str(value))

    def click(self, name: str) -> None:
        self.tab.get_by_role("button", name=name, exact=True).click()

    def shows(self, model, label=0, pixel_range=(0.0, 1.0)) -> None:
        """The canvas is the model's picture of the page's code: to 1e-5 before rounding, and in 8 bits."""
        pixels, wanted = self.pixels(), unit(model, self.code(), label, pixel_range)
        values = torch.tensor(self.tab.evaluate("Array.from(vaelabExplorer.values())")).view(wanted.shape)
        torch.testing.assert_close(values.clamp(0, 1), wanted, rtol=1e-5, atol=1e-5)
        assert wanted.std() > 0.02  # or there would be nothing to see
        levels = (torch.tensor(pixels) - torch.tensor(grey(wanted))).abs()
        assert levels.max() <= 1  # where float rounding decides between two levels
        assert (levels > 0).float().mean() < 0.01


@pytest.fixture(scope="module")
def page(browser):
    tab = browser.new_page(viewport={"width": 360, "height": 720})
    yield Page(tab)
    tab.close()


@pytest.mark.parametrize(("case", "likelihood"), [(c, LIKELIHOODS[i % len(LIKELIHOODS)]) for i, c in enumerate(CASES)])
def test_a_control_changes_the_picture_to_the_models_own(page, case, likelihood):
    pixel_range = (-1.0, 1.0) if likelihood in ("gaussian", "laplace") else (0.0, 1.0)
    normed = ["network.norm=batch"] if case[0] == "vae" and case[1] != "burgess" else []
    given = [f"likelihood={likelihood}", f"dataset.pixel_range={list(pixel_range)}".replace(" ", ""), *normed]
    model = made(*case, *given, shape=(3, 8, 9) if case[1] == "resnet" else (1, 9, 13))
    page.open(payload(model, pixel_range)).shows(model, pixel_range=pixel_range)
    before = page.pixels()
    if case[0] == "vqvae":
        page.slide("#ex-code", (int(page.tab.locator("#ex-code").input_value()) + 7) % 24)
    else:
        slider = page.tab.locator(".ex-slider input").first
        slider.fill(slider.get_attribute("max"))
    assert page.pixels() != before
    page.shows(model, pixel_range=pixel_range)
    page.click("Reset")
    assert page.pixels() == before


def test_every_activation_is_the_models(page):
    kinds = list(networks._ACTIVATIONS.values())
    given = ["network.hidden_dims=[12,12,12,12,12,12]", "network.norm=batch"]
    model = copy.deepcopy(made("vae", "mlp", *given))
    body: nn.Sequential = model.decoder.body
    places = [i for i, layer in enumerate(body) if isinstance(layer, nn.ReLU)]
    for place, kind in zip(places, kinds, strict=True):
        body[place] = kind()
    page.open(payload(model)).shows(model)


def test_starts_are_real_images_the_priors_mean_and_draws(page):
    model = made("vae", "mlp")
    data = payload(model)
    page.open(data)
    page.tab.get_by_role("button", name="Start from image 10, 2").click()
    assert page.code() == data["starts"][9]
    page.shows(model)
    page.click("Prior’s mean")
    assert page.code() == [0.0] * 12
    page.shows(model)
    page.click("Random draw")
    drawn = page.code()
    assert len(set(drawn)) == 12
    page.slide(f"#ex-z{data['dimensions'][0]['index']}", 3)
    page.click("Reset")
    assert page.code() == drawn
    page.shows(model)


def test_starts_are_spread_over_all_images_and_classes():
    model = made("vae", "mlp")
    images = torch.linspace(0, 1, 60).view(60, 1, 1, 1).expand(60, *model.shape)
    labels = torch.arange(60) // 20  # as a folder of classes has them
    own = explorer.payload(model, images, labels, (0.0, 1.0))["labels"]
    assert [own.count(k) for k in range(3)] == [4, 4, 4]
    codes = explorer.payload(model, images, None, (0.0, 1.0))["starts"]
    wanted = model.encode(images).code[torch.linspace(0, 59, 12).long()]
    torch.testing.assert_close(torch.tensor(codes), wanted)


def test_images_are_encoded_a_batch_at_a_time(monkeypatch):
    model, sizes = made("vae", "mlp"), []
    monkeypatch.setattr("vaelab.inference.coding.batch_size", lambda shape: 5)
    hook = model.encoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    payload(model, count=16)
    hook.remove()
    assert sizes == [5, 5, 5, 1]


def test_sliders_are_ordered_by_kl_and_unused_dimensions_say_so(page):
    model = made("vae", "mlp")
    weights = model.encoder.body[-1]
    kept = weights.weight.data.clone(), weights.bias.data.clone()
    with torch.no_grad():
        weights.weight[[7, 7 + 12]], weights.bias[[7, 7 + 12]] = 0.0, 0.0  # dimension 7 is the prior
        weights.bias[4] += 2.0  # dimension 4 has 2 nats
        data = payload(model)
        weights.weight.data, weights.bias.data = kept
    assert data["dimensions"][0]["index"] == 4
    assert data["dimensions"][-1] | {"use": 0} == data["dimensions"][-1] | {"index": 7, "use": 0, "unused": True}
    page.open(data)
    visible = page.tab.locator(".ex-slider:visible")
    assert visible.count() == 10
    page.click("Show all 12")
    assert visible.count() == 12
    assert "z7" in visible.last.inner_text()
    assert "not used" in visible.last.inner_text()
    assert "not used" not in visible.first.inner_text()


def test_an_autoencoders_sliders_reach_three_standard_deviations(page):
    model = made("ae", "mlp")
    data = payload(model)
    images = torch.empty(16, *model.shape).uniform_(generator=torch.Generator().manual_seed(2))
    codes = model.encode(images).code.detach()
    first = data["dimensions"][0]
    assert first["index"] == codes.std(0).argmax()
    spread = codes.std(0, correction=0)[first["index"]].item()
    assert first["high"] - first["low"] == pytest.approx(6 * spread, rel=1e-4)
    assert (first["high"] + first["low"]) / 2 == pytest.approx(codes.mean(0)[first["index"]].item(), abs=1e-5)
    page.open(data).click("Mean code")
    page.shows(model)


def test_a_label_changes_y_and_keeps_z(page):
    model = made("cvae", "conv")
    page.open(payload(model)).shows(model, label=0)
    code, before = page.code(), page.pixels()
    page.click("2")
    assert page.code() == code
    assert page.pixels() != before
    page.shows(model, label=2)
    assert page.tab.get_by_role("button", name="2", exact=True).get_attribute("aria-pressed") == "true"
    page.tab.get_by_role("button", name="Start from image 7, 1").click()
    page.shows(model, label=1)


def test_codes_are_changed_one_by_one_or_all_at_once(page):
    model = made("vqvae", "conv", shape=(3, 16, 12))  # a map of 4 x 3
    data = payload(model)
    page.open(data)
    page.tab.locator(".ex-map").click(position={"x": 5, "y": 150})
    page.tab.keyboard.press("ArrowDown")
    page.tab.keyboard.press("ArrowRight")
    place = int(page.tab.locator(".ex-map").get_attribute("aria-valuenow"))
    assert place % 3 == 1
    page.slide("#ex-number", (data["starts"][0][place] + 5) % 24)
    assert [a for a, b in enumerate(zip(page.code(), data["starts"][0], strict=True)) if b[0] != b[1]] == [place]
    page.shows(model)
    page.click("This code everywhere")
    assert set(page.code()) == {(data["starts"][0][place] + 5) % 24}
    page.shows(model)
    page.click("Random codes")
    assert len(set(page.code())) > 1
    page.shows(model)
    before = page.code()
    page.click("Random code here")
    assert page.code()[:place] + page.code()[place + 1 :] == before[:place] + before[place + 1 :]


def test_a_code_is_drawn_anew_given_all_others(page, monkeypatch):
    model = copy.deepcopy(made("vqvae", "conv", shape=(3, 16, 12)))
    assert payload(model)["choices"] == []
    model.draw_from(PixelCNN(24, [model.layout.shape], 3, 8, 2, 3, 0.0, True, 1, 1, 0.1, 1).eval())
    for parameter in model.prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    data = payload(model)
    page.open(data)
    place = int(page.tab.locator(".ex-map").get_attribute("aria-valuenow"))
    code, p = data["choices"][0][place][1]
    page.click(f"code {code}: {100 * p:.{int(p < 0.1)}f} %")
    assert page.code() == [*data["starts"][0][:place], code, *data["starts"][0][place + 1 :]]
    page.shows(model)
    pressed = page.tab.locator('.ex-map ~ .ex-group [aria-pressed="true"]')
    assert pressed.inner_text().startswith(f"code {code}:")
    for _ in range(5):
        page.click("Resample here")
        assert page.code()[place] in [choice for choice, _ in data["choices"][0][place]]
    page.tab.locator(".ex-map").press("ArrowUp")
    group = page.tab.get_by_role("button", name="Resample here")
    assert group.is_visible() == (page.code()[place] == data["starts"][0][place])
    page.click("Reset")
    assert group.is_visible()


def test_the_box_of_a_code_shows_the_one_that_is_used(page):
    page.open(payload(made("vqvae", "conv", shape=(3, 16, 12))))  # 24 codes
    place = int(page.tab.locator(".ex-map").get_attribute("aria-valuenow"))
    box = page.tab.locator("#ex-number")
    for typed, used in (("9999", 23), ("", 23), ("7", 7), ("-4", 0), ("", 0)):
        box.fill(typed)
        box.blur()
        assert box.input_value() == str(page.code()[place]) == str(used)


def test_the_page_works_by_keyboard_and_fits_a_phone_and_has_no_errors_in_the_dark(page):
    model = made("vae", "conv")
    data = payload(model)
    page.tab.emulate_media(color_scheme="dark")
    page.open(data)
    before = page.pixels()
    slider = page.tab.locator(".ex-slider input").first
    slider.focus()
    page.tab.keyboard.press("ArrowRight")
    assert page.pixels() != before
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 360
    page.tab.locator(".ex-slider:visible").last.scroll_into_view_if_needed()
    assert page.tab.evaluate("document.querySelector('.ex-stage').getBoundingClientRect().top") >= 0
    page.tab.emulate_media(color_scheme="light")


def test_a_page_without_an_explorer_is_left_alone(page):
    page.tab.set_content(f"<p id=explorer></p><script>{(PAGE / 'explorer.js').read_text()}</script>")
    assert not page.errors
    assert page.tab.inner_html("#explorer") == ""


def test_other_weights_would_be_seen(page):
    model = made("vae", "conv")
    data = payload(model)
    weights = np.frombuffer(base64.b64decode(data["decoder"]["weights"]), "<f4")
    data["decoder"]["weights"] = base64.b64encode(np.roll(weights, 1).tobytes()).decode()
    page.open(data)
    with pytest.raises(AssertionError):
        page.shows(model)


# --- what is too big for a page ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "cvae", "ae"])
def test_pictures_made_beforehand_are_those_of_their_sliders(page, monkeypatch, name):
    monkeypatch.setattr(portable, "MOST_WEIGHTS", 1)
    model = made(name, "mlp")
    data = payload(model)
    assert data["decoder"] is None
    page.open(data)
    page.tab.get_by_role("button", name="Start from image 2, 2").click()
    label = 2
    assert page.pixels() == pytest.approx(grey(unit(model, data["starts"][1], label)), abs=1)
    for dimension, place in ((2, 7), (5, 0)):
        slider = data["dimensions"][dimension]
        page.slide(f"#ex-z{slider['index']}", slider["low"] + place * slider["step"])
        wanted = list(data["starts"][1])  # only one slider is away from the start
        wanted[slider["index"]] = slider["low"] + place * slider["step"]
        assert page.pixels() == pytest.approx(grey(unit(model, wanted, label)), abs=1)
        assert page.code() == pytest.approx(wanted, abs=1e-5)
    if name == "cvae":
        page.click("1")
        assert page.pixels() == pytest.approx(grey(unit(model, data["starts"][1], 1)), abs=1)
    assert "The decoder is not in the page: it is too big for a page." in page.tab.inner_text(".ex-about")
    assert "one slider at a time" in page.tab.inner_text(".ex-about")


def test_codes_made_beforehand_are_those_of_their_position(page, monkeypatch):
    monkeypatch.setattr(portable, "MOST_WEIGHTS", 1)
    model = made("vqvae", "conv", shape=(1, 36, 24))  # a map of 9 x 6, of which 4 x 4 have pictures
    data = payload(model)
    assert len(data["made"]["positions"]) == 16
    page.open(data)
    page.tab.locator(".ex-map").focus()
    page.tab.keyboard.press("ArrowLeft")
    page.tab.keyboard.press("ArrowDown")
    page.slide("#ex-code", 11)
    place = int(page.tab.locator(".ex-map").get_attribute("aria-valuenow"))
    assert place == 8  # from the second column and row of four to the first column of the third
    wanted = list(data["starts"][0])
    wanted[data["made"]["positions"][place]] = data["made"]["codes"][place][11]
    assert page.code() == wanted
    assert page.pixels() == pytest.approx(grey(unit(model, wanted, 0)), abs=1)


def test_a_code_of_the_first_of_several_levels_is_drawn_anew_in_pictures_made_beforehand(page):
    torch.manual_seed(0)
    small = ["network.hidden_dims=[8]", "model.num_embeddings=24", "model.embedding_dim=4"]
    model = build(composed("model=vqvae2", *small)["model"], shape=(1, 16, 16), num_classes=3).eval()
    top, bottom = (tuple(level.shape) for level in model.layout.levels)
    model.draw_from(PixelCNN(24, [top, bottom], 3, 8, 2, 3, 0.0, True, 1, 1, 0.1, 1).eval())
    for parameter in model.prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    data = payload(model)
    page.open(data)
    assert "decoder is not in the page" in page.tab.inner_text(".ex-about")
    place = int(page.tab.locator(".ex-map").get_attribute("aria-valuenow"))
    position, choices = data["made"]["positions"][place], data["choices"][0][place]
    own = data["starts"][0][position]
    offered = list(dict.fromkeys([own, *(code for code, _ in choices)]))
    assert offered == data["made"]["codes"][place][: len(offered)]
    for code, p in choices[:3]:
        page.click(f"code {code}: {100 * p:.{int(p < 0.1)}f} %")
        wanted = [*data["starts"][0][:position], code, *data["starts"][0][position + 1 :]]
        assert page.code() == wanted
        assert page.pixels() == pytest.approx(grey(unit(model, wanted, 0)), abs=1)
    for _ in range(8):
        page.click("Resample here")
        assert page.code()[position] in [code for code, _ in choices]
    page.slide("#ex-code", 1)
    page.tab.locator(".ex-map").press("ArrowRight")  # of one picture made beforehand to the other: one code is changed
    assert page.code() == data["starts"][0]
    assert page.tab.get_by_role("button", name="Resample here").is_visible()


def test_a_sheet_is_exact_if_small_and_never_too_heavy(monkeypatch):
    from PIL import Image

    images = torch.rand(7, 3, 5, 9, generator=torch.Generator().manual_seed(0))
    small = explorer.sheet(images)
    read = np.array(Image.open(io.BytesIO(base64.b64decode(small["uri"].split(",")[1]))))
    for i, image in enumerate(images):
        top, left = i // small["columns"] * 5, i % small["columns"] * 9
        assert read[top : top + 5, left : left + 9].flatten().tolist() == grey(image)
    monkeypatch.setattr(explorer, "SHEET_BYTES", 20_000)
    noise = explorer.sheet(torch.rand(12, 3, 64, 64))
    assert len(noise["uri"]) < 20_100
    assert noise["shrunk"] > 1


class Odd(nn.Module):
    """A layer that no page knows."""

    def forward(self, x):
        return x


def decoder(model, **changes):
    """The portable decoder of a changed copy."""
    copied = copy.deepcopy(model)
    for name, value in changes.items():
        setattr(copied, name, value)
    return portable.decoder(copied)


def test_of_what_cannot_be_carried_the_page_says_why(monkeypatch):
    model = made("vae", "conv")
    assert isinstance(portable.decoder(model), portable.Portable)
    odd = nn.Sequential(*model.decoder.body[:-1], Odd(), model.decoder.body[-1])
    assert decoder(model, decoder=coders.Decoder(odd, model.shape)) == portable.UNKNOWN
    grouped = nn.Sequential(*model.decoder.body, nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    assert decoder(model, decoder=coders.Decoder(grouped, model.shape)) == portable.UNKNOWN
    assert decoder(model, decode=lambda z, labels: model.decoder(2 * z)) == portable.UNKNOWN
    unknown = copy.deepcopy(model)
    unknown.decoder = coders.Decoder(odd, model.shape)
    assert payload(unknown)["why"] == "of a kind that the page cannot compute"
    assert payload(model)["why"] is None
    carried = portable.decoder(model)
    for limit, own in (("MOST_WEIGHTS", len(carried.weights)), ("MOST_PRODUCTS", carried.products)):
        with monkeypatch.context() as patch:
            patch.setattr(portable, limit, own - 1)
            assert portable.decoder(model) == portable.BIG
            assert payload(model)["why"] == "too big for a page"


def test_products_and_weights_are_counted():
    carried = portable.decoder(made("vae", "mlp", "network.hidden_dims=[20]", shape=(1, 5, 4)))
    assert carried.products == 12 * 20 + 20 * 20
    assert len(carried.weights) == carried.products + 20 + 20
    carried = portable.decoder(made("vae", "conv", "network.hidden_dims=[6]", shape=(1, 4, 4)))
    assert carried.products == 12 * 24 + 6 * 1 * 16 * 2 * 2


@pytest.mark.parametrize("network", sorted({*options("network")} - {"modules", "conv1d", "skip", "resnet_64"}))
def test_every_layer_of_every_network_is_carried(network):
    """Of the networks that ship: whoever adds a layer adds it to the page too, or takes its network off this list.

    A user's own modules are not carried, nor is conv1d: of sequences there are no pictures. Nor are decoders to whose
    layers z is fed again, or that normalise by groups: their pages have pictures made beforehand.
    """
    parts = [made("vae", network, shape=(1, 16, 16))]
    if network == "mlp":
        parts += [made(model, network) for model in ("beta", "capacity")]
    if network in MAP:
        parts.append(made("vqvae", network, shape=(1, 16, 16)))
    assert all(isinstance(portable.decoder(model), portable.Portable) for model in parts)
