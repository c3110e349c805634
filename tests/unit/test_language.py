"""The language step: what it keeps by language and score, that a sample is enough, and what it refuses."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.steps.language import SAMPLE_CHARACTERS, SAMPLES, language, sample
from fmscale.errors import ConfigError
from tests.step_laws import assert_alone_as_together, run

TEXTS = {
    "en": "The river rose in the night, and by morning the bridge was under water. Nobody expected such rain.",
    "de": "Der Fluss stieg in der Nacht, am Morgen stand die Brücke unter Wasser. Niemand hatte es erwartet.",
    "fr": "La rivière est montée dans la nuit, et au matin le pont était sous l'eau. Personne n'y croyait.",
    "es": "El río creció por la noche y por la mañana el puente estaba bajo el agua. Nadie esperaba tanta lluvia.",
    "it": "Il fiume è salito nella notte e al mattino il ponte era sott'acqua. Nessuno si aspettava tanta pioggia.",
    "pl": "Rzeka wezbrała w nocy, a rano most był pod wodą. Nikt nie spodziewał się tak dużego deszczu w tym roku.",
    "ru": "Ночью река поднялась, и к утру мост был под водой. Никто не ожидал такого сильного дождя.",
    "el": "Το ποτάμι ανέβηκε τη νύχτα και το πρωί η γέφυρα ήταν κάτω από το νερό. Κανείς δεν περίμενε τόση βροχή.",
    "ja": "夜のうちに川の水かさが増し、朝には橋が水の下になっていた。こんなに雨が降るとは誰も思わなかった。",
    "zh": "夜里河水上涨，到了早上桥已经淹没在水下。没有人料到会下这么大的雨。",
    "ko": "밤사이 강물이 불어나 아침에는 다리가 물에 잠겼다. 아무도 비가 그렇게 많이 올 줄 몰랐다.",
    "ar": "ارتفع النهر في الليل، وفي الصباح كان الجسر تحت الماء. لم يتوقع أحد كل هذا المطر.",
}


def test_languages_are_named() -> None:
    found = run("language", list(TEXTS.values()), every=True)
    assert [d.meta["language"] for d in found] == list(TEXTS)
    assert all(0.4 < d.meta["language_score"] <= 1 and not d.dropped for d in found)


def test_a_recipe_keeps_what_it_names_by_score() -> None:
    unsure = "Hotel Taxi Internet Restaurant Computer 3000"
    texts = [TEXTS["en"], TEXTS["de"], TEXTS["fr"], unsure]
    english, german, french, mixed = run("language", texts, keep={"en": 0.7, "de": 0.5})
    assert (english.dropped, german.dropped) == ("", "")
    assert (french.dropped, french.found) == ("language/other", "fr")
    everything = dict.fromkeys(("en", "de", "fr", "it", "es", "nl", "pt", "ca", "id", "sv", "no", "da"), 0.99)
    (again,) = run("language", [unsure], keep=everything)
    assert again.dropped == "language/unsure"
    assert again.found == again.meta["language_score"] < 0.99
    assert again.meta["language"] == mixed.meta["language"]
    exactly = float(english.meta["language_score"])
    assert [d.dropped for d in run("language", [TEXTS["en"]], keep={"en": exactly})] == [""]


@given(st.text(max_size=2000))
def test_a_sample_is_short_and_of_the_text(text: str) -> None:
    looked_at = sample(text)
    assert len(looked_at) <= SAMPLES * SAMPLE_CHARACTERS + SAMPLES - 1
    assert "\n" not in looked_at
    if len(text) <= SAMPLES * SAMPLE_CHARACTERS:
        assert looked_at == text.replace("\n", " ")
    else:
        flat = text.replace("\n", " ")
        middle = (len(text) - SAMPLE_CHARACTERS) // 2
        ends = flat[:SAMPLE_CHARACTERS], flat[middle : middle + SAMPLE_CHARACTERS], flat[-SAMPLE_CHARACTERS:]
        assert looked_at == " ".join(ends)


@settings(max_examples=30)
@given(st.lists(st.one_of(st.text(), st.sampled_from(list(TEXTS.values()))), max_size=6))
def test_a_text_is_judged_alone_as_among_others(texts: list[str]) -> None:
    assert_alone_as_together(language, texts)


def test_what_the_sample_does_not_show_does_not_count() -> None:
    long = "\n".join([TEXTS["de"]] * 1000)
    assert [d.meta["language"] for d in run("language", [long, TEXTS["de"]], every=True)] == ["de", "de"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"keep": {"eng": 0.5}},
            r"the language eng\n  expected: one of the model's 176 .*\n.*eng: 0\.5.*\n  do: did you",
        ),
        (
            {"keep": {"en": 65}},
            r"score of step language is out of range\n  expected: 0 to 1.*\n  found: keep: {en: 65}",
        ),
        ({"keep": {"en": True}}, r"score of step language is out of range"),
        ({"keep": {"en": "0.5"}}, r"score of step language is out of range"),
    ],
)
def test_mistakes_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("language", [], **parameters)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"no model " * 100)
    with pytest.raises(
        ConfigError, match=r"is no fastText model\n.*\n  found: .*model\.bin: .*\n  do: correct the path"
    ):
        run("language", [], model=str(tmp_path / "model.bin"))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("fasttext"):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real(name, *rest)

    import importlib

    monkeypatch.setattr(importlib, "import_module", without)
    (tmp_path / "other.bin").write_bytes(b"")  # another model than the one that is loaded already
    with pytest.raises(
        ConfigError, match=r"step language needs the package fasttext\n.*\n.*\n  do: pip install 'fmscale\[data"
    ):
        list(language([], model=str(tmp_path / "other.bin")))
