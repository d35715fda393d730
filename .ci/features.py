"""Checks each feature alone, and which drivers a build pulls in."""

import json
import subprocess
import sys

# Optional dependencies that are no store's driver. (Most drivers bring rustls.)
NO_DRIVERS = {"axum-core", "clap", "indicatif", "libc", "rustls", "sha1"}
# `full` is the only one that may have everything; clippy has seen it.
COLLECTIONS = {"default", "full"}
# For the program only: libraries that ask for `full` do not get it, nor what it needs.
PROGRAM = "cli"
FOR_PROGRAM = {"clap", "indicatif"}


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


metadata = json.loads(output("cargo", "metadata", "--format-version", "1", "--no-deps"))
package = next(p for p in metadata["packages"] if p["name"] == "session-layer")
features = package["features"]
drivers = {d["name"] for d in package["dependencies"] if d["optional"]} - NO_DRIVERS
failures = []


def expected(feature):
    """The drivers that a feature asks for itself."""
    found = set()
    for item in features[feature]:
        if item.startswith("dep:"):
            found.add(item.removeprefix("dep:"))
        elif item in features:
            found |= expected(item)
    return found & drivers


def check_tree(name, options, wanted):
    tree = output("cargo", "tree", "--locked", "-e", "normal,build", "--prefix", "none",
                  "--format", "{p}", *options)
    pulled = {line.split()[0] for line in tree.splitlines() if line} & drivers
    print(f"{name}: {' '.join(sorted(pulled)) or 'no driver'}", flush=True)
    if pulled != wanted:
        failures.append(f"{name} pulls {sorted(pulled)}, not {sorted(wanted)}")


if not drivers or "default" not in features:
    sys.exit("features.py: found no drivers or no default features; has Cargo.toml changed?")

check_tree("default", [], set())
tree = output("cargo", "tree", "--locked", "-e", "normal,build", "--prefix", "none",
              "--format", "{p}", "--features", "full")
pulled = {line.split()[0] for line in tree.splitlines() if line}
if pulled & FOR_PROGRAM or not pulled & drivers:
    failures.append(f"full pulls {sorted(pulled & FOR_PROGRAM)}, which only the program needs")
alone = [[]] + [["--features", name] for name in features if name not in COLLECTIONS]
for options in alone:
    options = ["--no-default-features", *options]
    name = options[-1] if len(options) > 1 else "no feature"
    check_tree(name, options, expected(name) if name in features else set())
    lint = subprocess.run(
        ["cargo", "clippy", "--locked", "--quiet", "--lib", "--bins", *options,
         "--", "-D", "warnings"])
    if lint.returncode:
        failures.append(f"clippy failed with {name}")

# What is in no collection would be documented and released without being in `full`.
missing = set(features) - COLLECTIONS - {PROGRAM} - set(features.get("full", []))
if missing:
    failures.append(f"`full` lacks {sorted(missing)}")

for failure in failures:
    print(f"features.py: {failure}", file=sys.stderr)
sys.exit(bool(failures))
