#!/usr/bin/env python3
"""Fails if modules of a crate import each other in a cycle.

A module may import from its ancestors and descendants: a parent re-exports its children. Test modules, and re-exports at the
root of a crate, are left out.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def modules(source):
    """Maps the paths of a crate's modules, such as `cpu::tile`, to their files."""
    found = {}
    for file in sorted(source.rglob("*.rs")):
        parts = list(file.relative_to(source).with_suffix("").parts)
        if parts[-1] in ("mod", "lib", "main"):
            parts.pop()
        found["::".join(parts)] = file
    return found


def expand(tree):
    """Yields the paths of a use tree."""
    tree = tree.strip()
    if "{" not in tree:
        yield tree.split(" as ")[0].strip()
        return
    prefix, rest = tree.split("{", 1)
    depth, item = 0, ""
    for char in rest[: rest.rindex("}")] + ",":
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            if item.strip():
                yield from expand(prefix + item.strip())
            item = ""
        else:
            item += char


def paths(text):
    """Yields the paths that a file uses outside of comments and its tests."""
    text = re.sub(r"//[^\n]*", "", text).split("#[cfg(test)]\nmod tests", 1)[0]
    for tree in re.findall(r"^\s*(?:pub(?:\([^)]*\))?\s+)?use\s+([^;]+);", text, re.MULTILINE):
        yield from expand(tree)
    yield from re.findall(r"\b(?:crate|super|self)(?:::\w+)+", text)


def absolute(path, module):
    parts, here = path.split("::"), module.split("::") if module else []
    if parts[0] == "crate":
        return parts[1:]
    if parts[0] == "self":
        return here + parts[1:]
    up = 0
    while up < len(parts) and parts[up] == "super":
        up += 1
    return here[: max(len(here) - up, 0)] + parts[up:] if up else None


def imports(found):
    graph = {module: set() for module in found}
    for module, file in found.items():
        for path in paths(file.read_text()):
            target = absolute(path, module)
            for length in range(len(target or []), 0, -1):
                other = "::".join(target[:length])
                if other in found:
                    if not f"{module}::".startswith(f"{other}::") and not f"{other}::".startswith(f"{module}::"):
                        graph[module].add(other)
                    break
    return graph


def reachable(graph, start):
    seen, stack = set(), list(graph[start])
    while stack:
        module = stack.pop()
        if module not in seen:
            seen.add(module)
            stack.extend(graph[module])
    return seen


cyclic = False
for manifest in sorted(ROOT.glob("*/Cargo.toml")):
    graph = imports(modules(manifest.parent / "src"))
    cycle = sorted(module for module in graph if module in reachable(graph, module))
    if cycle:
        cyclic = True
        print(f"{manifest.parent.name}: {', '.join(cycle)} import each other", file=sys.stderr)
sys.exit(cyclic)
