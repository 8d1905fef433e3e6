"""The pages do what they say: blocks of Python and of the shell run in order, links and anchors lead somewhere.

``<!-- setup: NAMES -->`` in a page names what the reader has already; ``<!-- not run: REASON -->`` above a block says
why it cannot run here.
"""

import doctest
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import crovca
from crovca.cli.main import main
from crovca.evaluation import figures
from crovca.hashing import config
from tests.encoders import tiny

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/tutorials/*.md"), *ROOT.glob("docs/howto/*.md")])
ALL_PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MADE = ROOT / "docs" / "reference" / "commands.md"  # while the site is built
BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"python", "bash", "diff", "text"}  # the latter two are not run anywhere: what a command prints, say


def blocks(page):
    """Reason not to run it or None, kind and text of each block, and its line."""
    text = page.read_text("utf-8")
    for found in BLOCK.finditer(text):
        yield found[1], found[2], found[3], text.count("\n", 0, found.start(2)) + 1


def make_photos(folder):
    image = pytest.importorskip("PIL.Image")
    (folder / "photos").mkdir()
    for number, pixels in enumerate(digits()[0][:40]):
        gray = image.fromarray((255 - pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8))
        gray.resize((96, 96), image.Resampling.BICUBIC).save(folder / "photos" / f"{number}.jpg")


def make_encoder(folder):
    pytest.importorskip("transformers")
    model, processor, _ = tiny.models()["DINOv2"]
    tiny.save(model, folder / "encoder", processor)


def make_digits(folder):
    """``database.npz`` and ``queries.npz``, with labels."""
    save(folder / "database.npz", slice(300))
    save(folder / "queries.npz", slice(300, 350))


def make_my_embeddings(folder):
    """``my.npz``, ``new.npz`` with other ids, both together by another encoder, and ``queries.npz``."""
    save(folder / "my.npz", slice(500))
    save(folder / "new.npz", slice(500, 700))
    save(folder / "queries.npz", slice(700, 750))
    other = np.random.default_rng(0).normal(size=(64, 32))
    np.savez(
        folder / "other-encoder.npz", embeddings=(digits()[0][:700] @ other).astype(np.float32), ids=np.arange(700)
    )


def make_sentence_model(folder):
    """A small model of texts with random weights."""
    pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizerFast

    bert = folder / ".bert"
    bert.mkdir()
    words = "a dog ship snow in Bern Rome Oslo Lima".lower().split()
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(str(bert / "vocab.txt")).save_pretrained(bert)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words) + 5, **sizes)).save_pretrained(bert)
    transformer = Transformer(str(bert))
    modules = [transformer, Pooling(transformer.get_embedding_dimension())]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "sentence-model"))


SETUPS = {
    "photos": make_photos,
    "encoder": make_encoder,
    "digits": make_digits,
    "my-embeddings": make_my_embeddings,
    "sentence-model": make_sentence_model,
}


def digits():
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def save(path, rows):
    pixels, labels = digits()
    np.savez(path, embeddings=pixels[rows].astype(np.float32), labels=labels[rows], ids=np.arange(len(labels))[rows])


class Shell:
    """Runs lines as a reader would; ``crovca`` in this process, since starting one takes seconds."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        self.service = None  # at most one: the page's localhost:8000
        self.port = 8000

    def run(self, text):
        for line in text.replace("\\\n", " ").splitlines():
            line = line.split("  #")[0].strip().replace("localhost:8000", f"localhost:{self.port}")
            if line.startswith("crovca serve"):
                self.serve(shlex.split(line)[1:])
            elif line.startswith("crovca "):
                with pytest.raises(SystemExit) as exit_:
                    main(shlex.split(line)[1:])
                assert exit_.value.code == 0, f"{line}: {self.capsys.readouterr().err}"
            elif line.startswith("export "):
                self.monkeypatch.setenv(*line.removeprefix("export ").split("=", 1))
            elif line and not line.startswith("#"):
                ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=500, check=False)
                assert ran.returncode == 0, f"{line}: {ran.stdout}{ran.stderr}"

    def serve(self, arguments):
        self.close()
        command = [sys.executable, "-m", "crovca.cli.main", *arguments, "--port", "0"]  # not forked: it has workers
        self.service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.service.stdout.readline()
        found = re.search(r"http://\S+:(\d+)", line)
        assert found, line + self.service.stderr.read()
        self.port = int(found[1])

    def close(self):
        if self.service is not None:
            self.service.send_signal(signal.SIGTERM)
            self.service.communicate(timeout=500)
            self.service = None


@pytest.fixture
def shell(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))  # thumbnails
    monkeypatch.delenv("CROVCA_TOKEN", raising=False)
    monkeypatch.setattr(config, "HELD_STEPS", 1)  # epochs="auto": as few as there can be, and maps of few items
    monkeypatch.setattr(figures, "MAP_ITEMS", 50)
    opened = Shell(monkeypatch, capsys)
    yield opened
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.starts
def test_blocks_run(tmp_path, shell, page):
    for names in re.findall(r"^<!-- setup: (.+) -->$", page.read_text("utf-8"), re.MULTILINE):
        for name in names.split(", "):
            SETUPS[name](tmp_path)
    namespace = {"__name__": "page"}
    ran = 0
    for reason, kind, text, line in blocks(page):
        if reason is not None or kind not in ("python", "bash"):
            continue
        if kind == "python":
            exec(compile("\n" * line + text, str(page), "exec"), namespace)  # errors name the page's line
        else:
            shell.run(text)
        ran += 1
    assert ran


@pytest.mark.parametrize(
    "reason",
    [pytest.param(found[0], id=f"{page.stem}:{found[3]}") for page in PAGES for found in blocks(page) if found[0]],
)
def test_block_that_cannot_run_here(reason):
    for path in re.findall(r"tests/\S+", reason):
        assert (ROOT / path).exists(), path
    pytest.skip(reason)


NEEDS = {
    "crovca archive ": "images", "crovca embed ": "images", "crovca finetune ": "augment", "crovca serve ": "serve",
    " --report ": "report", " --onnx ": "onnx", "sentence_transformers": "sentence-transformers",
    "integrations.langchain": "langchain",
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_what_to_install(page):
    """Whoever has the bare package and follows the page ends at no missing extra."""
    code = "".join(text for _, _, text, _ in blocks(page))
    named = set(",".join(re.findall(r"(?:crovca|'\.)\[([\w,-]+)\]", page.read_text("utf-8"))).split(","))
    assert {extra for used, extra in NEEDS.items() if used in code} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_block_escapes(page):
    """A block is of a kind that is run, or is known not to be."""
    text = page.read_text("utf-8")
    assert len(re.findall("^ *```", text, re.MULTILINE)) == 2 * sum(1 for _ in blocks(page))
    assert {kind for _, kind, _, _ in blocks(page)} <= KINDS
    assert text.count("<!-- not run") == sum(reason is not None for reason, _, _, _ in blocks(page))


SOURCE = Path(crovca.__file__).parent
WITH_EXAMPLES = [path.relative_to(SOURCE.parent) for path in SOURCE.rglob("*.py") if ">>>" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", sorted(WITH_EXAMPLES), ids=str)
def test_examples_of_docstrings_run(path):
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    failed, attempted = doctest.testmod(module)
    assert failed == 0 and attempted > 0


def anchors(page):
    """As GitHub and the site make them of headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", one) for one in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text("utf-8")):
        if path.startswith(("http:", "https:")):
            continue
        target = page.parent / path if path else page
        if target.resolve() != MADE:
            assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_every_public_name_is_in_the_reference():
    text = "".join(page.read_text("utf-8") for page in ROOT.glob("docs/reference/*.md"))
    described = set(re.findall(r"^::: crovca\.(\w+)$", text, re.MULTILINE))
    errors = {"CrovcaError", "CrovcaWarning"}  # with their whole module
    assert described == {*crovca.__all__} - errors | {"errors"}


@pytest.mark.slow
@pytest.mark.starts
def test_the_site_is_built_without_a_warning_and_can_be_searched(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    searched = (tmp_path / "site" / "search" / "search_index.json").read_text("utf-8")
    for words in ("crovca archive sync", "Hasher.from_pretrained", "Outgrow one machine", "What an index promises"):
        assert words in searched, words
    commands = (tmp_path / "site" / "reference" / "commands.html").read_text("utf-8")
    assert "<code>--scoring hamming|asymmetric_hamming|bce</code>" in commands
    assert '"year &#60; 1960"' in commands or '"year &lt; 1960"' in commands
