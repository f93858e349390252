#!/usr/bin/env python3
"""Fails if a library uses `anyhow`: its errors are typed, so that callers can tell them apart.

Files of a library are those that `mod` declarations reach from `src/lib.rs`; a binary beside it may print `anyhow` chains.
Test modules and comments are left out.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def files(file, folder):
    """Yields a module's file and those of the modules in it; `folder` has the latter."""
    text = re.sub(r"//[^\n]*", "", file.read_text())
    text = re.sub(r"#\[cfg\(test\)\]\s*mod \w+(?:;|\s*\{.*)", "", text, flags=re.DOTALL)
    yield file, text
    for name in re.findall(r"^\s*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+);", text, re.MULTILINE):
        for child in (folder / f"{name}.rs", folder / name / "mod.rs"):
            if child.exists():
                yield from files(child, folder / name)


failed = False
for root in sorted(ROOT.glob("*/src/lib.rs")):
    for file, text in files(root, root.parent):
        if re.search(r"\banyhow\b", text):
            failed = True
            print(f"{file.relative_to(ROOT)} uses anyhow; return the error of its crate", file=sys.stderr)
sys.exit(failed)
