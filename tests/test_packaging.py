"""What pyproject.toml says about the package."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_is_packaged():
    folders = [file.parent for file in (ROOT / "nfnets").rglob("__init__.py")]
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    listed = SETTINGS["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({*packages, "nfnets.configs"})


def test_the_oldest_versions_are_the_lower_bounds():
    project = SETTINGS["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["train"], *extras["tfds"]]
    bounds = dict(requirement.split(">=") for requirement in needed)
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned.pop("jaxlib")
    assert pinned.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert re.match(rf"{re.escape(bound)}(\.\d+)*$", pinned[name]), name
