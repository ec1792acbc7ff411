"""Run code as an environment has it that holds the core and nothing else: `python tests/bare.py CODE [WORD ...]`."""
import re
import sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from importlib.util import find_spec

from packaging.requirements import Requirement


def normal(name: str) -> str:
    "A distribution's name, spelled in one way"
    return re.sub(r"[-_.]+", "-", name).lower()


def brought(names: list[str], found: set[str]) -> set[str]:
    "Distributions that come with these, without extras"
    for name in map(normal, names):
        if name in found: continue
        try: needs = [Requirement(line) for line in distribution(name).requires or []]
        except PackageNotFoundError: continue
        found.add(name)
        brought([need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})], found)
    return found


def core(root) -> set[str]:
    "Distributions that `pip install lottery-nb` brings, by settings.ini"
    from configparser import ConfigParser
    config = ConfigParser(delimiters=["="])
    config.read(root/"settings.ini", encoding="utf-8")
    return brought([Requirement(line).name for line in config["DEFAULT"]["requirements"].split()], set())


class Bare(PathFinder):
    "The import system without what an extra brings"
    refused, absent = set(), set()   # modules, distributions

    @classmethod
    def find_spec(cls, name, path=None, target=None): return None if name.partition(".")[0] in cls.refused else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context): return (found for found in super().find_distributions(*context) if normal(found.name or "") not in cls.absent)


def enter(root):
    "From here on only the standard library, the core and lottery_nb itself can be imported"
    allowed, homes = core(root) | {"lottery-nb"}, packages_distributions()
    Bare.refused = {module for module, names in homes.items() if not allowed & {normal(name) for name in names}}
    Bare.absent = {normal(name) for names in homes.values() for name in names} - allowed
    for name in [name for name in sys.modules if name.partition(".")[0] in Bare.refused]: del sys.modules[name]
    sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
    assert find_spec("pandas") is None and find_spec("torch")


if __name__ == "__main__":
    from pathlib import Path
    enter(Path(__file__).resolve().parent.parent)
    code, sys.argv = sys.argv[1], ["lottery-nb", *sys.argv[2:]]
    exec(code)
