"""Pack what a GPU machine without a package index lacks, small enough for a narrow way there.

python examples/benchmarks/gpu/pack.py .gpu
writes into the folder, from an index:

warp.tar.xz: Warp without its compiler for CPUs and with its own kernels for one kind of GPU alone; in pieces of 6 MiB, which
fill several uploads better than a few large ones, and warp.tar.xz.sha256, by which setup.sh tells that all are there.
site.tar.xz: the other packages of wheels.txt, unpacked.
weights-NAME.tar: the weights of a folder of distill/embedded, for a checkout whose weights were left out because an upload has no room
for them; a run needs only the archives of the models that it uses.
code.tar.xz: this repository's last commit without its weights, to unpack where a checkout of it, with them, is.

Files that go together in an upload are put into the same subfolder: upload-1, upload-2 and so on, in the order in which they are needed.
Wheels are kept in the subfolder wheels, and what is there is not fetched again. setup.sh unpacks the rest on the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
#: Of glibc, newest first: pip takes a wheel only for a platform that is named.
GLIBC = (35, 34, 31, 28, 27, 24, 17)
#: What no run needs of Warp: the compiler for CPUs, and what would be read or run by hand.
LEFT = ("warp/bin/warp-clang.so", "warp/tests/*", "warp/examples/*", "warp/__init__.pyi")
FATBIN, CUBIN = 0xBA55ED50, 2
PARTS = ("code", "site", "weights", "warp")
#: Where the library's own weights are, and what they are for git.
EMBEDDED = "distill/embedded"
WEIGHTS = (f"{EMBEDDED}/*.safetensors",)


def fetch(folder: Path, python: str) -> None:
    """Download the wheels that are not there yet, or build those that an index has only as source."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [line for line in (HERE / "wheels.txt").read_text().splitlines() if not line.startswith("#")]
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC] + ["manylinux2014_x86_64", "any"]
    for name in names:
        if list(folder.glob(f"{name.replace('-', '_')}-[0-9]*.whl")):
            continue
        common = ["--quiet", "--no-deps", "--constraint", str(ROOT / "constraints.txt")]
        if name == "antlr4-python3-runtime":
            options = ["wheel", "--wheel-dir", str(folder), *common]
        else:
            options = [
                "download",
                "--dest",
                str(folder),
                *common,
                "--only-binary=:all:",
                "--python-version",
                python,
            ]
            options += ["--implementation", "cp", "--abi", f"cp{python.replace('.', '')}", "--abi", "abi3"]
            options += ["--abi", "none", *(part for each in platforms for part in ("--platform", each))]
        subprocess.run([sys.executable, "-m", "pip", *options, name], check=True)


def device_code(data: bytes | bytearray) -> Iterator[tuple[int, int, int, int]]:
    """The GPU programs in a library: kind, architecture, first byte, bytes."""
    mark = struct.pack("<IHH", FATBIN, 1, 16)
    start = data.find(mark)
    while start >= 0:
        (size,) = struct.unpack_from("<Q", data, start + 8)
        entry, end = start + 16, start + 16 + size
        while entry < end:
            kind, _, own, length = struct.unpack_from("<HHIQ", data, entry)
            (architecture,) = struct.unpack_from("<I", data, entry + 28)
            yield kind, architecture, entry + own, length
            entry += own + length
        start = data.find(mark, end)


def dense_runs(data: bytes | bytearray, block: int = 2**16) -> Iterator[tuple[int, int]]:
    """Stretches of at least 4 MiB that are compressed already: first byte and bytes."""
    first = None
    for start in range(0, len(data) + block, block):
        part = data[start : start + block]
        if len(part) == block and len(zlib.compress(part, 1)) > 0.97 * block:
            first = start if first is None else first
        elif first is not None:
            if start - first >= 2**22:
                yield first, start - first
            first = None


def strip(library: Path, architecture: int) -> int:
    """Blank what a library holds for other GPUs and for tiles' matrix products, so that it compresses to nothing.

    What is left compiles and launches kernels as before. The latter is the one long stretch of a library that is compressed
    already; a kernel that asks for it would not compile. Returns how many bytes were blanked.
    """
    data, gone = bytearray(library.read_bytes()), 0
    programs = list(device_code(data))
    if not any(kind == CUBIN and own == architecture for kind, own, *_ in programs):
        raise ValueError(
            f"{library.name} has no machine code for sm_{architecture}; choose another --architecture"
        )
    others = [
        (first, length) for kind, own, first, length in programs if (kind, own) != (CUBIN, architecture)
    ]
    for first, length in [*others, *dense_runs(data)]:
        data[first : first + length] = bytes(length)
        gone += length
    library.write_bytes(data)
    return gone


def check(folder: Path) -> None:
    """Compile this library's kernels with the Warp that was packed."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_warp_aot.py"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(folder), "WARP_CACHE_PATH": str(folder / "cache")}, check=True,
    )  # fmt: skip
    shutil.rmtree(folder / "cache", ignore_errors=True)


def compress(folder: Path, archive: Path, preset: str) -> None:
    """One xz stream with a dictionary that sees the whole folder, and x86 jumps made alike."""
    files = sorted(path.name for path in folder.iterdir())
    tar = subprocess.Popen(
        ["tar", "--owner=0", "--group=0", "-C", folder, "-c", *files], stdout=subprocess.PIPE
    )
    filters = ["--x86", f"--lzma2=preset={preset},dict=256MiB"]
    with archive.open("wb") as file:
        subprocess.run(["xz", "--threads=1", *filters], stdin=tar.stdout, stdout=file, check=True)
    if tar.wait():
        raise RuntimeError(f"could not read {folder}")


def split(archive: Path, size: int) -> list[Path]:
    """Cut an archive into pieces of at most ``size`` bytes, for several uploads, with the checksum of the whole beside them."""
    for old in archive.parent.glob(f"{archive.name}.*"):
        old.unlink()
    data = archive.read_bytes()
    pieces = []
    for number, start in enumerate(range(0, len(data), size)):
        pieces.append(archive.with_name(f"{archive.name}.{number:02d}"))
        pieces[-1].write_bytes(data[start : start + size])
    archive.with_name(f"{archive.name}.sha256").write_text(hashlib.sha256(data).hexdigest() + "\n")
    archive.unlink()
    return pieces


def uploads(sizes: Mapping[str, int], room: int) -> list[list[str]]:
    """Share files out to uploads, in their order, each with as many as fit into ``room`` bytes.

    Raises:
        ValueError: a file alone does not fit.
    """
    found: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if size > room:
            raise ValueError(
                f"{name} has {size} bytes and an upload has room for {room}; choose a larger --upload, or a smaller --piece for Warp"
            )
        if not found or size > left:
            found.append([])
            left = room
        found[-1].append(name)
        left -= size
    return found


def tracked(*patterns: str) -> list[Path]:
    """The files of the checkout that git knows, or those of some patterns."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *patterns]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def gather(folder: Path) -> None:
    """Bring back what an earlier call shared out to uploads."""
    for upload in folder.glob("upload-*"):
        for path in upload.iterdir():
            path.rename(folder / path.name)
        upload.rmdir()


def share_out(folder: Path, limit: int) -> None:
    """Put files that go together into folders, where an upload has a limit and takes this checkout along, without its weights.

    Prints what is where.

    Raises:
        ValueError: a file does not fit beside the checkout, or weights in the checkout are not in the last commit.
    """
    check_committed()
    weights = set(tracked(*WEIGHTS))
    tree = sum(path.stat().st_size for path in tracked() if path not in weights and path.is_file())
    # Nothing imports without the first two.
    first = [folder / "code.tar.xz", folder / "site.tar.xz", *sorted(folder.glob("weights-*.tar"))]
    files = [*(path for path in first if path.exists()), *sorted(folder.glob("warp.tar.xz.*"))]
    room = (limit - 1) * 2**20 - tree  # names, modes and whatever else is counted
    sizes = {path.name: path.stat().st_size for path in files}
    print(
        f"{tree / 2**20:.2f} MiB in the checkout without its weights; with uploads of {limit} MiB that take it along:"
    )
    for number, names in enumerate(uploads(sizes, room)):
        upload = folder / f"upload-{number + 1}"
        upload.mkdir()
        for name in names:
            (folder / name).rename(upload / name)
        print(f"{sum(sizes[name] for name in names) / 2**20:6.2f} MiB  {upload}: {' '.join(names)}")
    print(
        f"take the weights out of the checkout for the uploads:  git ls-files -z '{WEIGHTS[0]}' | xargs -0 rm\n"
        f"and bring them back afterwards:                        git restore '{WEIGHTS[0]}'"
    )


def check_committed() -> None:
    """Refuse weights in the checkout that are not in the last commit: they would be lost when they are taken out.

    Raises:
        ValueError: there are some.
    """
    changed = subprocess.run(
        ["git", "-C", ROOT, "diff", "--name-only", "HEAD", "--", *WEIGHTS],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    # Those that are not there have been taken out before.
    if changed := [name for name in changed if (ROOT / name).exists()]:
        raise ValueError(
            f"{changed[0]} differs from the last commit, which is packed; commit it first, or restore it"
        )


def pack_weights(folder: Path) -> list[Path]:
    """Write an archive of the weights of each folder of ``distill/embedded``, as git has them in the last commit.

    Returns:
        The archives.

    Raises:
        ValueError: weights in the checkout are not in the last commit.
    """
    check_committed()
    for old in folder.glob("weights-*.tar"):
        old.unlink()
    names = sorted({path.relative_to(ROOT / EMBEDDED).parts[0] for path in tracked(*WEIGHTS)})
    archives = []
    for name in names:
        archives.append(folder / f"weights-{name}.tar")
        command = ["git", "-C", str(ROOT), "archive", "HEAD", f":(glob){EMBEDDED}/{name}/**/*.safetensors"]
        archives[-1].write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return archives


def pack_code(archive: Path) -> None:
    """The last commit except for its weights and pictures."""
    left = [f":(exclude,glob)**/*.{ending}" for ending in ("safetensors", "jpg", "png")]
    tar = subprocess.run(
        ["git", "-C", ROOT, "archive", "HEAD", ".", *left], check=True, capture_output=True
    ).stdout
    archive.write_bytes(subprocess.run(["xz"], input=tar, check=True, capture_output=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="version there")
    parser.add_argument("--architecture", type=int, default=90, help="of the GPU: 90 is Hopper, 80 an A100")
    parser.add_argument(
        "--preset", default="9e", help="of xz; 6 is five times as fast and a twentieth larger"
    )
    parser.add_argument("--only", nargs="+", default=[*PARTS], choices=PARTS)
    parser.add_argument("--piece", type=int, default=6, help="MiB of each of Warp's pieces")
    parser.add_argument(
        "--upload", type=int, default=64, help="MiB that an upload takes, by which files are put together"
    )
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    gather(folder)
    if "code" in options.only:
        pack_code(folder / "code.tar.xz")
    if "weights" in options.only:
        pack_weights(folder)
    if {"site", "warp"} & {*options.only}:
        fetch(folder / "wheels", options.python)
    for part in ("site", "warp"):
        if part not in options.only:
            continue
        with tempfile.TemporaryDirectory() as name:
            unpacked = Path(name)
            for wheel in (folder / "wheels").glob("*.whl"):
                if wheel.name.startswith("warp_lang") == (part == "warp"):
                    zipfile.ZipFile(wheel).extractall(unpacked)
            if part == "warp":
                for path in [path for pattern in LEFT for path in unpacked.glob(pattern)]:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                gone = strip(unpacked / "warp/bin/warp.so", options.architecture)
                print(f"{gone / 2**20:.0f} MiB of warp.so blanked")
                check(unpacked)
            compress(unpacked, folder / f"{part}.tar.xz", options.preset)
            if part == "warp":
                split(folder / "warp.tar.xz", options.piece * 2**20)
    share_out(folder, options.upload)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
