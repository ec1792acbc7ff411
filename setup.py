"""All metadata lives in settings.ini; this file only hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
meta = config["DEFAULT"]
extras = {name.removesuffix("_requirements"): words.split() for name, words in meta.items() if name.endswith("_requirements")}

setup(
    name=meta["lib_name"], version=meta["version"], description=meta["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    author=meta["author"], author_email=meta["author_email"], url=meta["git_url"], license="Apache-2.0", keywords=meta["keywords"],
    python_requires=f">={meta['min_python']}", install_requires=meta["requirements"].split(), extras_require=extras,
    packages=["lottery_nb", "lottery_nb.runs", "lottery_nb.reports", "lottery_nb.grids"],
    package_dir={"lottery_nb.runs": "nbs/runs", "lottery_nb.reports": "nbs/reports", "lottery_nb.grids": "grids"},
    package_data={"lottery_nb": ["data/*", "data/*/*", "py.typed"], "lottery_nb.runs": ["*.ipynb"], "lottery_nb.reports": ["*.ipynb"], "lottery_nb.grids": ["*.yaml"]},
    entry_points={"console_scripts": [meta["console_scripts"]]},
)
