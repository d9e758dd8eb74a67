"""What is released: a wheel with the package alone, and a source archive that the tests can be run from."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import torch_clipped

ROOT = Path(__file__).parents[2]
FOLDERS = ("torch_clipped", "docs", "experiments", "figures", "tests")
EXAMPLE = """
import importlib.metadata
import torch_clipped
assert torch_clipped.__version__ == importlib.metadata.version("torch-clipped")
print(torch_clipped.__file__)
"""


def files(folder):
    """The paths of the files under a folder, relative to it, without what Python keeps there of its own."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts and not path.name.startswith(".")}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the tree: what building leaves behind stays out of the checkout, and what lies there out of the build."""
    if not (ROOT / "torch_clipped").is_dir():
        pytest.skip("needs the package's source beside the tests")
    source = tmp_path_factory.mktemp("source")
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith(".") and path.name != "PKG-INFO":  # an unpacked source archive has that
            shutil.copy(path, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return source


@pytest.fixture(scope="module")
def archives(source, tmp_path_factory):
    """The source archive, and the wheel that was built from it without a network."""
    pytest.importorskip("build", reason="needs build")
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77 or newer")
    wanted = files(source)
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return archive, wheel, wanted


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """The folder into which the wheel is unpacked, which is all that installing it does."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(folder)
    return folder


def test_wheel_holds_the_package_its_types_and_the_license(source, installed):
    assert files(installed / "torch_clipped") == files(source / "torch_clipped")
    (information,) = installed.glob("*.dist-info")
    assert {path.name for path in installed.iterdir()} == {"torch_clipped", information.name}
    assert (information / "licenses" / "LICENSE").read_text() == (source / "LICENSE").read_text()


def test_source_archive_holds_the_whole_tree(archives):
    archive, _, wanted = archives
    with tarfile.open(archive) as found:
        names = {member.name.partition("/")[2] for member in found if member.isfile()}
    assert {name for name in names if "egg-info" not in name} == wanted | {"PKG-INFO"}


def test_editable_install_is_a_path_that_type_checkers_follow(source, tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77 or newer")
    command = [sys.executable, "-c", f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        (name,) = (name for name in wheel.namelist() if ".dist-info/" not in name)
        assert name.endswith(".pth")
        assert Path(wheel.read(name).decode().strip()) == source


def test_metadata_name_what_the_readme_names(installed):
    (information,) = installed.glob("*.dist-info")
    metadata = email.message_from_string((information / "METADATA").read_text())
    assert metadata["Version"] == torch_clipped.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    lowest = re.fullmatch(r">=(3\.\d+)", metadata["Requires-Python"])[1]
    versions = [value.rpartition(" ")[2] for value in metadata.get_all("Classifier") if " :: Python :: 3." in value]
    assert versions[0] == lowest
    assert f"Python {lowest}" in metadata.get_payload()


def test_index_would_take_both_and_show_the_readme(archives):
    pytest.importorskip("twine", reason="needs twine")
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, archives[:2])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_unpacked_wheel_is_what_is_imported_and_runs_the_example(installed, tmp_path):
    example = re.search(r"## Example\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    command = [sys.executable, "-c", EXAMPLE + example]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place, printed = done.stdout.splitlines()
    assert Path(place) == installed / "torch_clipped" / "__init__.py"
    assert "'steps': 100.0" in printed
