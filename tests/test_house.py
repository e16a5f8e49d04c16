"""The promises of the repository: versions, public names, clean files, documents that are true."""

import ast
import dataclasses
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "nerf", "sds3d")


def _tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the list of tracked files is unknown")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def _modules() -> Iterator[ModuleType]:
    for package in PACKAGES:
        root = importlib.import_module(package)
        yield root
        for found in pkgutil.walk_packages(root.__path__, prefix=f"{package}."):
            yield importlib.import_module(found.name)


def _sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _run_sds3d(*words: str) -> str:
    """What the installed command prints, as a user sees it, without colour or narrow lines."""
    done = subprocess.run(
        [Path(sys.executable).with_name("sds3d"), *words],
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"sds3d {' '.join(words)} failed:\n{done.stderr}"
    return done.stdout


# --- the files -------------------------------------------------------------------------------


def test_no_tracked_file_names_a_machine_or_a_package_index() -> None:
    # Spelt in pieces, so that this file does not accuse itself.
    folders = "|".join(["ho" + "me", "ro" + "ot", "Us" + "ers", "wo" + "rk", "op" + "t"])
    hosts = "|".join(
        ["py" + r"pi\.org", "pythonho" + r"sted\.org", "npm" + r"js\.org", r"pytorch\.org/w" + "hl"]
    )
    options = "|".join(["index" + "-url", "find" + "-links"])
    banned = re.compile(rf"(?<![\w.:/-])/(?:{folders})/[\w.]+|{hosts}|--(?:extra-)?(?:{options})")
    accused: list[str] = []
    for path in _tracked_files():
        if not path.is_file():  # deleted in the working tree, not yet in the index
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if banned.search(line):
                accused.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not accused, "\n".join(accused)


def test_no_tracked_file_is_too_large_to_clone_at_ease() -> None:
    sizes = {p.relative_to(ROOT): p.stat().st_size for p in _tracked_files() if p.is_file()}
    assets = sum(size for path, size in sizes.items() if path.parts[0] == "assets")
    assert assets <= 60 * 2**20
    large = [
        str(path) for path, size in sizes.items() if path.parts[0] != "assets" and size > 20 * 2**20
    ]
    assert not large


# --- versions and licence --------------------------------------------------------------------


def test_one_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert importlib.metadata.version("sds3d") == version, "install again: pip install -e ."
    assert _run_sds3d("--version").strip() == version
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(version)}\]", changes, re.MULTILINE)


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


# --- dependencies ----------------------------------------------------------------------------


def _imported(path: Path) -> set[str]:
    """The top-level names of a file's absolute imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def declared(requirements: list[str]) -> set[str]:
        names = [re.split(r"[^\w.-]", line)[0] for line in requirements]
        return {re.sub(r"[-_.]+", "-", name).lower() for name in names}

    # There are no wheels of the CUDA bindings for macOS.
    distributions = {"cuda": ["cuda-bindings"], **importlib.metadata.packages_distributions()}
    # What an extra brings is imported where it is used, with an error that names the extra.
    run = project["dependencies"] + extras["ray"] + extras["cuda"]
    # A script may also use what the tests do: one takes pictures of the app in their browser.
    used_where = {
        "run": run,
        "test": project["dependencies"] + extras["test"],
        "script": run + extras["test"],
    }
    files = {
        "run": _sources(),
        "test": sorted((ROOT / "tests").rglob("*.py")),
        "script": sorted((ROOT / "scripts").rglob("*.py")),
    }
    ours = {*PACKAGES, *(path.stem for path in (ROOT / "scripts").iterdir())}
    undeclared: list[str] = []
    for kind, requirements in used_where.items():
        known = declared(requirements)
        for path in files[kind]:
            for name in _imported(path) - set(sys.stdlib_module_names) - ours:
                if name == "tinycudann":  # used where a user has built it, never required
                    continue
                owners = {
                    re.sub(r"[-_.]+", "-", d).lower() for d in distributions.get(name, [name])
                }
                if not owners & known:
                    undeclared.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not undeclared, "\n".join(sorted(undeclared))


# --- public names ----------------------------------------------------------------------------


def test_public_names_exist_and_none_is_left_out() -> None:
    faults: list[str] = []
    listing = 0
    for module in _modules():
        listed = getattr(module, "__all__", None)
        if listed is None:
            continue
        listing += 1
        if len(set(listed)) != len(listed):
            faults.append(f"{module.__name__}.__all__ repeats a name")
        faults += [
            f"{module.__name__}.__all__ lists {name!r}, which does not exist"
            for name in listed
            if not hasattr(module, name)
        ]
        own = {
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__
        }
        faults += [
            f"{module.__name__}.{name} is public and missing from __all__"
            for name in sorted(own - set(listed))
        ]
    assert not faults, "\n".join(faults)
    assert listing > 0


# --- no dead options -------------------------------------------------------------------------


def _attributes_read(tree: ast.AST) -> set[str]:
    """The names read as attributes, except where a class checks itself: that is not a use."""
    read: set[str] = set()
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            read.add(node.attr)
        for child in ast.iter_child_nodes(node):
            method = child.name if isinstance(child, ast.FunctionDef) else ""
            checks = method.startswith(("__post_init__", "_check"))
            if not (checks and isinstance(node, ast.ClassDef)):
                pending.append(child)
    return read


def test_every_option_is_read_somewhere() -> None:
    read: set[str] = set()
    for path in _sources():
        read |= _attributes_read(ast.parse(path.read_text(encoding="utf-8")))
    configs = {
        value
        for module in _modules()
        for value in vars(module).values()
        if inspect.isclass(value)
        and dataclasses.is_dataclass(value)
        and value.__name__.endswith(("Config", "Options"))
        and value.__module__.split(".")[0] in PACKAGES
    }
    assert configs
    dead = sorted(
        f"{config.__module__}.{config.__qualname__}.{field.name}"
        for config in configs
        for field in dataclasses.fields(config)
        if field.name not in read
    )
    assert not dead, f"options that nothing reads: {dead}"


# --- what importing costs and reaches --------------------------------------------------------


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    listed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split())


def test_the_loop_does_not_load_the_toybox_world() -> None:
    loaded = _loaded_by("import sds3d.optimize")
    assert "sds3d.optimize" in loaded
    assert not {name for name in loaded if name.startswith("sds3d.toybox")}
    assert "sds3d.evaluate" not in loaded


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    loaded = _loaded_by("import sds3d.cli")
    assert not loaded & {"torch", "numba", "diffusers", "transformers", "trimesh", "gradio"}


# --- the README is true ----------------------------------------------------------------------


@cache
def _readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@cache
def _help(*subcommand: str) -> str:
    return _run_sds3d(*subcommand, "--help")


@cache
def _subcommands() -> set[str]:
    choices = re.search(r"\{([a-z][a-z0-9_,-]*)\}", _help())
    assert choices is not None, f"no list of subcommands in:\n{_help()}"
    return set(choices.group(1).split(","))


def _readme_commands() -> list[list[str]]:
    """Each `sds3d ...` line of the README's code, split in words, continuation lines joined."""
    code = "\n".join(re.findall(r"```\w*\n(.*?)```", _readme(), re.DOTALL))
    code += "\n" + "\n".join(re.findall(r"`([^`\n]+)`", _readme()))
    lines = code.replace("\\\n", " ").splitlines()
    found = [re.sub(r"^\$ ", "", line.strip()) for line in lines]
    return [line.split("#")[0].split() for line in found if re.match(r"sds3d\s", line)]


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?\bmake ([a-z]+)`", _readme()))
    named |= set(re.findall(r"^(?:\$ )?make ([a-z]+)", _readme(), re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_every_subcommand_is_documented_and_every_documented_one_exists() -> None:
    named = {words[1] for words in _readme_commands() if not words[1].startswith("-")}
    assert named == _subcommands()


def test_every_flag_of_the_readme_is_in_the_help() -> None:
    unknown: list[str] = []
    seen = 0
    for words in _readme_commands():
        subcommand = [] if words[1].startswith("-") else [words[1]]
        known = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", _help(*subcommand)))
        for word in words[1:]:
            flag = re.match(r"\[?(--?[a-z][a-z0-9-]*)", word)
            if flag:
                seen += 1
                if flag.group(1) not in known:
                    unknown.append(f"{' '.join(words)}: {flag.group(1)}")
    assert seen > 0
    assert not unknown, "\n".join(unknown)


def test_every_preset_is_documented() -> None:
    presets = set(importlib.import_module("sds3d.presets").PRESETS)
    code = set(re.findall(r"`([a-z0-9-]+)`", _readme()))
    assert presets <= code, f"the README does not name {sorted(presets - code)} as `code`"
    commands = "\n".join(" ".join(words) for words in _readme_commands())
    named = set(re.findall(r"--preset[ =]([a-z-]+)\b(?!\|)", commands))
    assert named
    assert named <= presets


@pytest.mark.parametrize("document", ["README.md", "docs/design.md", "docs/log.md"])
def test_every_relative_link_leads_somewhere(document: str) -> None:
    page = ROOT / document
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    targets = [link.split("#")[0] for link in links if "://" not in link]
    missing = [link for link in targets if link and not (page.parent / link).exists()]
    assert not missing


def test_the_changelog_is_in_its_order() -> None:
    dates = re.findall(
        r"^## \[\d+\.\d+\.\d+\] - (\d{4}-\d{2}-\d{2})$",
        (ROOT / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )
    assert dates == sorted(dates, reverse=True)
