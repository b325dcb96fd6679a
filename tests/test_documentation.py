"""Run what README and docs/ print, and check their links, their tables of results and the names that they mention.

`sh` and `python` blocks run as they are, after those of README. `console` blocks run at a small size. `text` blocks are
output.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import checkpointkd as ckd
from checkpointkd.cli import COMMANDS, main
from checkpointkd.config import DataConfig
from checkpointkd.data import load_data

from .checkpoints import writers
from .data.image_files import folder_of_digits
from .results_page import check_results_page, tables

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
START = DOCS / "get-started.md"
PAGES = sorted(DOCS.rglob("*.md"))

# What makes a command of a `console` block small. A tenth of a minute ends `reproduce` early, as an interruption does.
SMALLER = {
    "train": "--epochs 2 --save-every 1 --train-images 200 --precision fp32",
    "score": "--decoder-steps 2 --decoder-seeds 1",
    "distill": "--epochs 1 --precision fp32 --allow-weak-teacher",
    "tune": "--epochs 1 --train-images 200 --trials 1 --precision fp32 --allow-weak-teacher",
    "reproduce": "--teacher-epochs 2 --student-epochs 2 --train-images 200 --seeds 2 --time-limit 0.1 --precision fp32",
}
TESTED_ELSEWHERE = {"demo"}  # tests/experiments/test_demo.py


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def _lines(page: Path, language: str) -> list[list[str]]:
    """Return the words of each command in the blocks of a page."""
    lines = [line for block in _blocks(page, language) for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _commands(page: Path, language: str = "sh") -> list[list[str]]:
    """Return the arguments of each `checkpointkd` command in the blocks of a page."""
    return [words[1:] for words in _lines(page, language) if words[0] == "checkpointkd"]


def _run_page(page: Path) -> None:
    """Run a page's commands, then its Python blocks, in the current directory."""
    for command in _commands(page):
        assert main(command) == 0, command
    for block in _blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that README's commands and Python leave."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _run_page(README)
    return folder


def test_readme_goes_from_a_teacher_to_a_report(readme_folder: Path):
    assert [command[0] for command in _commands(README)] == ["train", "score", "select", "distill", "report"]
    assert len(_blocks(README, "python")) == 1
    assert (readme_folder / "runs" / "student" / "student.safetensors").exists()
    assert (readme_folder / "runs" / "report.html").exists()


def test_get_started_has_the_commands_of_readme():
    assert _blocks(README, "sh")[0] in START.read_text(encoding="utf-8")


def test_readme_is_one_screen_and_a_half():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 140


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=() if page == START else pytest.mark.slow)
        for page in PAGES
        if _commands(page) or _blocks(page, "python")
    ],
)
def test_commands_of_a_page_run_after_those_of_readme(page: Path, readme_folder: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(readme_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    _run_page(page)


def _external(folder: Path) -> None:
    """Write what the page on external checkpoints names: images, a ResNet trained on them, and Lightning's files."""
    import timm
    from torchvision import datasets
    from torchvision.transforms import v2

    folder_of_digits(folder / "images", train=20, classes=2)
    (folder / "output").mkdir()
    to_tensor = v2.Compose([v2.Resize((224, 224)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images = DataLoader(datasets.ImageFolder(folder / "images" / "train", to_tensor), batch_size=10, shuffle=True)
    network = timm.create_model("resnet18", num_classes=2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    for epoch in (1, 2, 3):
        for images_BCHW, labels_B in images:
            optimizer.zero_grad()
            cross_entropy(network(images_BCHW), labels_B).backward()
            optimizer.step()
        torch.save({"epoch": epoch, "state_dict": network.state_dict()}, folder / "output" / f"checkpoint-{epoch}.pth")
    digits = load_data(DataConfig(data="digits", train_images=100))
    writers.lightning(folder / "lightning_logs" / "version_0" / "checkpoints", digits)


def _teacher(folder: Path) -> None:
    """Train the teacher that README trains, in fewer epochs."""
    ckd.train("wrn_16_2", data="digits", train_images=200, epochs=4, save_every=2, out=folder / "runs" / "teacher")


def _own(folder: Path) -> None:
    """Write what the page on own data names: a function that returns data, and fresh images for a teacher."""
    _external(folder)
    shutil.copytree(folder / "images" / "val", folder / "images" / "fresh")
    (folder / "my_project").mkdir()
    (folder / "my_project" / "data.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\nimport checkpointkd as ckd\n"
        "def build():\n"
        "    images, labels = torch.rand(600, 1, 8, 8), torch.arange(600) % 3\n"
        "    part = lambda first: TensorDataset(images[first : first + 200], labels[first : first + 200])\n"
        "    return ckd.Data(train=part(0), val=part(200), test=part(400), classes=3, name='noise')\n"
    )


BEFORE: dict[str, Callable[[Path], None]] = {
    "external-checkpoints": _external,
    "clusters": _teacher,
    "own-data-and-loop": _own,
}


def _smaller(command: list[str], data: Path) -> list[str]:
    """Return a command that does the same with less: options of SMALLER replace others, and digits train in no time."""
    place = "digits" if command[0] == "train" else f"cifar100:{data}"
    words = [word.replace("cifar100:PATH", place) for word in command]
    options = shlex.split(SMALLER.get(command[0], ""))
    for name in options[::2]:
        if name in words:
            at = words.index(name)
            del words[at : at + 2]
    return words + options + (["--yes"] if command[0] == "reproduce" and "--yes" not in words else [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in (README, *PAGES) if _commands(page, "console")], ids=lambda p: p.stem
)
def test_commands_that_take_long_run_at_a_small_size(page: Path, tmp_path: Path, monkeypatch, cifar100: Path):
    monkeypatch.chdir(tmp_path)
    BEFORE.get(page.stem, lambda folder: None)(tmp_path)
    for command in _commands(page, "console"):
        if command[0] not in TESTED_ELSEWHERE:
            assert main(_smaller(command, cifar100)) == 0, command


def test_other_commands_name_targets_and_extras_that_exist():
    """`make` and `pip` are run by CI and by tests/test_packaging.py. Here their targets and extras are looked up."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    seen = set()
    for page in (README, ROOT / "CONTRIBUTING.md", *PAGES):
        for words in _lines(page, "console") + _lines(page, "sh"):
            seen.add(words[0])
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        for listed in re.findall(r"pip install -e '?\.\[([\w,]+)\]", page.read_text(encoding="utf-8")):
            assert set(listed.split(",")) <= set(extras), page
    assert seen <= {"checkpointkd", "make", "pip", "git"}, "nothing runs the others"


def test_documentation_runs_every_command():
    """Two commands are left to their own tests: `demo` takes minutes, `reproduce` has a folder of tests."""
    run = {command[0] for page in (README, *PAGES) for command in _commands(page)}
    assert run >= {
        "train",
        "inspect",
        "score",
        "select",
        "distill",
        "tune",
        "evaluate",
        "correlate",
        "export",
        "report",
    }


def test_documentation_prints_only_options_that_exist(capsys: pytest.CaptureFixture[str], monkeypatch):
    """Commands of `console` blocks run in the slow tests only, so their options are compared with `--help`."""
    monkeypatch.setenv("COLUMNS", "200")
    helps: dict[str, str] = {}
    for page in (README, *PAGES):
        for command in _commands(page, "sh") + _commands(page, "console"):
            if command[0] not in helps:
                assert main([command[0], "--help"]) == 0
                helps[command[0]] = capsys.readouterr().out
            for option in (word for word in command if word.startswith("--")):
                assert re.search(rf"{option}\b", helps[command[0]]), f"{page.name}: {command}"
    assert "reproduce" in helps


def test_links_of_the_documentation_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *PAGES]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]*(?:#[^)]*)?)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 50
    for page, link in links:
        name, _, section = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        if section:
            assert section in _anchors(target), f"{page.name}: {link}"


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_navigation():
    entries = {
        (page.parent / f"{entry}.md").resolve()
        for page in (DOCS / "index.md", DOCS / "results" / "README.md")
        for tree in re.findall(r"```{toctree}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for entry in re.findall(r"^(?!:)(\S+)$", tree, re.MULTILINE)
    }
    assert entries == {page for page in PAGES if page.name != "index.md"}


def test_pages_lead_with_what_the_reader_can_do():
    guides = [page for page in PAGES if page.parent == DOCS and page.name != "index.md"]
    assert len(guides) > 12
    for page in guides:
        paragraph = page.read_text(encoding="utf-8").split("\n\n")[1]
        assert paragraph.startswith(("After this page", "This page")), page.name


def test_the_diagram_is_what_its_script_draws():
    drawn = runpy.run_path(str(DOCS / "images" / "idea.py"))["draw"]()
    assert (DOCS / "images" / "idea.svg").read_bytes() == drawn, "run docs/images/idea.py"


def test_the_reference_lists_what_help_lists(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    section = runpy.run_path(str(DOCS / "conf.py"))["command_section"]
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", capsys.readouterr().out)) - {"--help", "--version"}
        listed = set(re.findall(r"`(--[\w-]+)`", "\n".join(section(name))))
        assert "--json" in listed
        assert options - listed == set(), name


def test_the_python_reference_shows_calls_that_python_accepts():
    as_call = runpy.run_path(str(DOCS / "conf.py"))["_as_call"]
    for name in COMMANDS:
        examples = re.findall(r"^ *checkpointkd .*$", getattr(ckd, name).__doc__, re.MULTILINE)
        assert examples, name
        for example in examples:
            tree = ast.parse(as_call(example).strip()).body[0].value
            values = {word.arg: ast.literal_eval(word.value) for word in tree.keywords}
            inspect.signature(getattr(ckd, name)).bind(*map(ast.literal_eval, tree.args), **values)


RESULTS = sorted((DOCS / "results").glob("*/README.md"))


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.parent.name)
def test_results_begin_with_a_summary_then_figures_then_all_rows(page: Path):
    check_results_page(page)


def test_the_paper_page_names_functions_that_exist():
    text = (DOCS / "paper.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:-1] for row in tables(text)[0][2:]]
    names = [name for row in rows for name in re.findall(r"`([\w.]+)`", row[1])]
    assert len(names) > 20
    for name in names:
        assert _exists(f"checkpointkd.{name}"), name


def _exists(name: str) -> bool:
    """Return whether a dotted name is a module, or an object in one."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(import_module(module), attribute) or bool(import_module(name))
    except ImportError:
        return False


@pytest.mark.skipif(not os.access(ROOT / ".git", os.R_OK), reason="not a git checkout: there is no list of its files")
def test_nothing_large_is_tracked():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in tracked.stdout.split("\0") if name]
    assert [str(file) for file in files if file.exists() and file.stat().st_size > 1_000_000] == []
