"""Build hook: compiles the scoring kernel into the wheel, or leaves it out where no compiler is found.

A wheel with the kernel is for one platform and every Python 3 (the kernel is a plain C library, loaded by ctypes).
"""

from __future__ import annotations

import importlib.util
import platform
import sysconfig
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build = _builder(Path(self.root) / "vctool" / "scoring" / "build.py")
        # An editable install runs from the source tree, so the library belongs there; a wheel must not leave traces in it.
        library = build.LIBRARY if version == "editable" else Path(mkdtemp()) / build.LIBRARY.name
        problem = build.compile_kernel(library)
        if problem:
            self.app.display_warning(f"vctool: the scoring kernel is left out, search will be slower: {problem}")
            return
        if version != "editable":
            build_data["force_include"][str(library)] = f"vctool/scoring/{library.name}"
        build_data["pure_python"] = False
        here = sysconfig.get_platform().replace("universal2", platform.machine())  # the library is for this processor only
        build_data["tag"] = f"py3-none-{here.replace('-', '_').replace('.', '_')}"


def _builder(path: Path) -> ModuleType:
    """`vctool.scoring.build` without importing vctool, whose dependencies are not installed yet."""
    spec = importlib.util.spec_from_file_location("vctool_kernel_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
