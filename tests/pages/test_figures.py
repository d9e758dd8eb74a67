"""``figures/`` holds what the experiments give with their default settings, and the guides say what is in it."""

import json
import os
import re
from operator import itemgetter

import pytest
from support.idx import write_idx
from support.pages import ROOT, page

from experiments.__main__ import main
from experiments.common import command
from experiments.compare import task_graph
from experiments.compare.task import TASKS
from experiments.toy.run import PROBLEMS

FIGURES = ROOT / "figures"
NAMES = sorted(path.stem for path in FIGURES.glob("*.json") if not path.stem.endswith(".partial"))
NAMES.remove("releases")  # the suite on other releases, which has no settings
LIBRARY = r"Python [\d.]+ standard library, first \d+ files"  # the text differs from one Python to another
IMAGES = r"\d+ images for training"  # that in the tests are few
OF_THE_TEXT = ("training_characters", "validation_characters", "alphabet", "loss_of_guessing")


class CapturedError(Exception):
    """Raised in place of training, with the settings."""


def captured(settings):
    raise CapturedError(settings)


def of_journal(path, settings, resume):
    """The settings that are in a figure, too; the others say with what an interrupted run may go on."""
    kept = {key: value for key, value in settings.items() if key not in ("versions", "threads", "machine")}
    return kept


# The arguments of the command that writes each file, where they are not its name.
COMMANDS = {
    "heavy_tails": ["heavy-tails"],
    **{f"toy_{problem}": ["toy", "--only", problem] for problem in PROBLEMS},
    **{f"compare_{task}": ["compare", "--task", task] for task in TASKS},
    **{
        f"compare_{task}_fashion-mnist": ["compare", "--task", task, "--data", "fashion-mnist"]
        for task in ("image", "perceptron")
    },
}
INSIDE = {  # where the settings are a part of what an interrupted run may go on with
    "restarts": itemgetter("problems"),
    **{f"toy_{problem}": itemgetter(problem) for problem in PROBLEMS},
}


def of_default(name, monkeypatch, tmp_path):
    """The settings with which the command of that file begins to train where no option is given."""
    monkeypatch.chdir(tmp_path)  # where figures is a new folder
    write_idx(tmp_path / "fashion-mnist")
    monkeypatch.setattr(command, "Journal", lambda *given: captured(of_journal(*given)))
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr(task_graph, "needed", lambda *names: None)  # the package is for the model, not for the settings
    with pytest.raises(CapturedError) as caught:
        main([*COMMANDS.get(name, [name]), "--out", "figures"])
    return INSIDE.get(name, lambda settings: settings)(caught.value.args[0])


def comparable(settings):
    """As they are in a file, without what the running Python's own text decides."""
    text = re.sub(LIBRARY, "text", json.dumps(settings))
    text = re.sub(IMAGES, "images", text)
    found = json.loads(text)
    return {key: value for key, value in found.items() if key not in OF_THE_TEXT} if isinstance(found, dict) else found


def stored(name):
    """What the file says of its settings."""
    content = json.loads((FIGURES / f"{name}.json").read_text())
    if isinstance(content, list):
        return [one["config"] for one in content]
    return content["config"] if "config" in content else content["settings"]


@pytest.mark.parametrize("name", NAMES)
def test_figure_is_that_of_the_default_settings(name, monkeypatch, tmp_path):
    assert comparable(of_default(name, monkeypatch, tmp_path)) == comparable(stored(name))


def test_every_figure_is_whole():
    for name in NAMES:
        content = json.loads((FIGURES / f"{name}.json").read_text())
        assert isinstance(content, list) or not content.get("interrupted", False), name


def test_restarts_have_all_seeds_of_their_settings():
    for one in json.loads((FIGURES / "restarts.json").read_text()):
        seeds = range(one["config"]["seed"], one["config"]["seed"] + one["config"]["seeds"])
        assert [end["seed"] for end in one["ends"]] == [seed for seed in seeds for _ in one["config"]["schedules"]]


def test_numbers_of_the_restarts_are_those_of_their_figure():
    """Every number of the paragraph, and what it says of the best learning rates."""
    losses, means = [], []
    for one in json.loads((FIGURES / "restarts.json").read_text()):
        plain, *restarted = one["contenders"]
        averaged = [c["validation_loss"]["median"] for c in restarted if "from the mean" in c["contender"]]
        assert plain["validation_loss"]["median"] < min(averaged)
        losses.append("{:.2f} against {:.2f} to {:.2f}".format(plain["validation_loss"]["median"], min(averaged), max(averaged)))
        means.append(f"{plain['mean_validation_loss']['median']:.2f}")
        at_highest = {row["contender"]: row["training_loss"] for row in one["grid"] if row["lr"] == max(one["config"]["lrs"])}
        assert min(loss for name, loss in at_highest.items() if "from the mean" in name) < at_highest["no restart"]
    (paragraph,) = re.findall(r"^What restarts buy.*?\n\n", page("docs/restarts.md"), re.M | re.S)
    words = " ".join(paragraph.split())
    assert f"{losses[0]} nats a character on the language model, {losses[1]} on the regression (validation losses)" in words
    assert "the mean of the last quarter of the iterates reaches {} and {}.".format(*means) in words
    assert re.findall(r"\d+\.\d+", words) == re.findall(r"\d+\.\d+", " ".join([*losses, *means]))


def test_no_test_can_write_into_figures(monkeypatch):
    monkeypatch.chdir(ROOT)
    for change in (  # the first one changes nothing, should it get through
        lambda: os.open("figures/restarts.json", os.O_RDWR),
        lambda: (FIGURES / "restarts.json").write_text("[]"),
        lambda: (FIGURES / "restarts.json").unlink(),
        lambda: (FIGURES / "restarts.json").rename(FIGURES / "other.json"),
        lambda: (FIGURES / "new").mkdir(),
        lambda: main(["restarts", "--out", "figures"]),
        lambda: main(["restarts"]),
        lambda: main(["toy", "--only", "adagrad", "--out", str(FIGURES)]),
    ):
        with pytest.raises(RuntimeError, match=r"tests must not change (figures|results): give --out"):
            change()
    assert json.loads((FIGURES / "restarts.json").read_text())


def test_gallery_shows_every_picture_below_the_command_that_draws_it():
    gallery = (ROOT / "docs" / "gallery.md").read_text()
    shown = re.findall(r"^python -m experiments (.+) --out figures\n```\n\n!\[.+\]\(\.\./figures/(.+)\.png\)$", gallery, re.M)
    assert {name for _, name in shown} == {path.stem for path in FIGURES.glob("*.png")}
    for arguments, name in shown:
        wanted = COMMANDS.get(name.removesuffix("_details"), [name])
        assert arguments.split()[: len(wanted)] == wanted[:1] + ([] if name.startswith("toy") else wanted[1:])
