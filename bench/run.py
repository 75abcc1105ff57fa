#!/usr/bin/env python3
"""Measure pyrope and its peers on this machine: on its GPU if it has one, else on its CPU.

Without arguments: decode and prefill sizes of one model. Each result is checked against float64 before it is timed. The
ceiling is measured in the same run, interleaved with everything else.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import busy
import measure as measured
import packed
import peers as implementations
import report
from cases import FIELDS, OPS, POSITIONS, SUITES, Case, select
from peers import PEERS, Peer, brief

import pyrope


class Progress:
    """A bar on the terminal, and a line a case where stderr is none."""

    def __init__(self, total: int):
        self.total, self.done, self.start, self.on = max(total, 1), 0, time.monotonic(), sys.stderr.isatty()

    def tick(self, text: str, by: float = 0) -> None:
        self.done += by
        if self.on:
            part = min(self.done / self.total, 1)
            bar = "#" * round(24 * part)
            print(
                f"\r\033[K[{bar:<24}] {part:4.0%} {time.monotonic() - self.start:4.0f} s  {text[:80]}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def begin(self, number: int, text: str) -> None:
        """A line for a case, where there is no bar."""
        if not self.on:
            self.say(f"[{number}/{self.total}] {time.monotonic() - self.start:.0f} s  {text}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        print(("\r\033[K" if self.on else "") + text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.on:
            print("\r\033[K", end="", file=sys.stderr)


def positive(text: str) -> int:
    """A number above 0, for argparse."""
    if int(text) <= 0:
        raise ValueError(text)
    return int(text)


def count(text: str) -> int:
    """A number that may be 0, for argparse."""
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


def parse(argv: list[str] | None) -> argparse.Namespace:
    forms = "; ".join(f"{name}: {text}" for name, text in POSITIONS.items())
    suites = "; ".join(f"{name}: {text}" for name, (text, _) in SUITES.items())
    names = ", ".join(peer.name for peer in PEERS[1:] if not peer.step_only)
    p = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: bench/run.py --batch-size 1 8 --seq-len 1024 --dtype float16 --peers none --json run.json; "
        "--op attention, attention-backward or attention-decode, and --suite seed-attention, standing first, "
        "take options of their own: --op attention --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--suite", choices=list(SUITES), help=f"named grid of cases (default: quick). {suites}")
    many = p.add_argument_group("fields of the cases; every value given replaces the suite's (several: all of them)")
    many.add_argument("--op", nargs="+", choices=list(OPS), help="those of a suite that has them all, else instead")
    many.add_argument("--dtype", nargs="+", choices=["float32", "float16", "bfloat16"])
    many.add_argument("--layout", nargs="+", choices=["neox", "gptj"])
    many.add_argument("--batch-size", nargs="+", type=positive, help="requests")
    many.add_argument("--seq-len", nargs="+", type=positive, help="tokens of each request")
    many.add_argument("--num-heads", nargs="+", type=positive, help="query heads")
    many.add_argument("--num-kv-heads", nargs="+", type=int, choices=range(1 << 20), metavar="N", help="0: no k")
    many.add_argument("--head-dim", nargs="+", type=positive)
    many.add_argument("--rotary-dim", nargs="+", type=positive, help="rotated elements of a head (default: all)")
    many.add_argument("--positions", nargs="+", choices=list(POSITIONS), help=forms)
    many.add_argument("--in-place", dest="in_place", action="append_const", const=True)
    many.add_argument("--out-of-place", dest="in_place", action="append_const", const=False)
    many.add_argument("--in-step", dest="step", action="append_const", const=True,
                      help="CUDA: between the other kernels of a layer, as in the suite step")  # fmt: skip
    p.add_argument("--device", default="auto", help="cuda:N, cuda, cpu (default: the GPU if there is one)")
    p.add_argument("--num-threads", type=count, default=0, help="CPU: of pyrope and the ceiling (default: all)")
    p.add_argument("--seed", type=int, default=0, help="of the values and positions")
    p.add_argument("--peers", default="all", help=f"all, none, or a comma list of: {names}")
    p.add_argument("--save-path", type=pathlib.Path, metavar="DIR", help="results.json, table.txt and plots go here")
    p.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the results to it; its folder must exist")
    p.add_argument("--plot", action="store_true", help="write plots (to --save-path, else the current folder)")
    args = p.parse_args(argv)
    if args.json and not args.json.parent.is_dir():
        p.error(f"argument --json: {args.json.parent} is not a folder")
    if args.plot and args.suite == "cpu-busy":
        p.error("argument --plot: not with --suite cpu-busy")
    return args


def open_device(name: str, threads: int):
    """The device of that name; `auto` and `cuda` take the first GPU."""
    if name == "cpu" or (name == "auto" and not pyrope.device_count()):
        from cpu import Cpu

        return Cpu(threads)
    kind, _, index = ("cuda" if name == "auto" else name).partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise SystemExit(f"--device: {name!r}, must be cuda:N, cuda or cpu")
    if not pyrope.device_count():
        raise SystemExit(f"--device: {name}: no CUDA device, or this pyrope is built without CUDA")
    from gpu import Gpu

    return Gpu(int(index or 0))


def choose_peers(text: str, device: str, cases: list[Case]) -> tuple[list[Peer], dict]:
    """pyrope, its other forms in a step, and the peers of some cases that can run; what is recorded about each."""
    names = [peer.name for peer in PEERS if not peer.step_only]
    wanted = {"all": names, "none": []}.get(text, text.split(","))
    if unknown := set(wanted) - set(names):
        raise SystemExit(f"--peers: {', '.join(sorted(unknown))}: must be all, none or some of {', '.join(names[1:])}")
    present, about = [], {}
    for peer in PEERS:
        asked = peer.name in wanted or peer is PEERS[0] or peer.step_only
        if not asked or not any(peer.measured(case) for case in cases):
            continue
        reason = implementations.absent(peer, device)
        about[peer.name] = {"status": "absent", "reason": reason, "what": peer.what} if reason else {
            "status": "present", "version": implementations.version(peer), "what": peer.what}  # fmt: skip
        if reason is None:
            present.append(peer)
    return present, about


def build(present: list[Peer], cases: list[Case], progress: Progress) -> dict[object, str]:
    """Compile what the peers compile on first use, at the same time; returns why by key where that failed."""
    tasks = {key: task for peer in present for case in cases if not peer.unable(case)
             for key, task in peer.builds(case).items()}  # fmt: skip
    failed = {}
    with ThreadPoolExecutor(8) as pool:
        for key, future in [(key, pool.submit(task)) for key, task in tasks.items()]:
            progress.say(f"building {key}")
            if error := future.exception():
                failed[key] = f"build failed: {brief(error)}"
                progress.say(f"{key}: {error}")
    return failed


def describe(device, argv: list[str]) -> dict:
    """What was run, where, with which versions."""
    names = ("numpy", "ml_dtypes", "cuda-python", "cuda-bindings", "torch", "triton", "cupy-cuda13x")
    versions = {"python": platform.python_version(), "pyrope": f"{pyrope.__version__} ({pyrope.build_info()})"}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    here = pathlib.Path(__file__).parent
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "commit": commit,
            "arguments": argv, "versions": versions, "device": device.info()}  # fmt: skip


# Operations that have programs of their own, with options of their own.
PROGRAMS = {"attention": "attention", "attention-backward": "attention_backward", "attention-decode": "decode"}
# The grid of a published attempt in Triton: 4 sequences of 32 heads of 128, fewer beyond 4096 tokens.
SEED_ATTENTION = ["--heads", "32/32", "--tokens", *(str(512 << i) for i in range(9))]


def run_program(argv: list[str]) -> bool:
    """What `--op attention ...` and `--suite seed-attention ...` stand for. False: argv is neither."""
    if argv[:1] == ["--op"] and len(argv) > 1 and argv[1] in PROGRAMS:
        name, options = PROGRAMS[argv[1]], argv[2:]
    elif argv[:2] == ["--suite", "seed-attention"]:
        name, options = "attention", SEED_ATTENTION + argv[2:]
    else:
        return False
    importlib.import_module(name).main(options)
    return True


def main(argv: list[str] | None = None) -> None:
    if run_program(sys.argv[1:] if argv is None else argv):
        return
    args = parse(argv)
    if args.plot:
        import plots
    device = open_device(args.device, args.num_threads)
    if args.suite == "cpu-busy" and device.kind != "cpu":
        raise SystemExit("--suite: cpu-busy, only with --device cpu")
    chosen = {field: list(dict.fromkeys(values)) for field in FIELDS if (values := getattr(args, field)) is not None}
    cases = select(args.suite, device.kind, chosen)
    for case in cases:
        if reason := OPS[case.op].refuses(case) or (case.step and (packed.refuses(case) or device.no_step())):
            raise SystemExit(f"{case}: {reason}")
    present, about = choose_peers(args.peers, device.kind, cases)
    record = describe(device, argv if argv is not None else sys.argv[1:])
    progress = Progress(len(cases))
    failed = build(present, cases, progress)
    record |= {"peers": about, "cases": []}
    if args.save_path:
        args.save_path.mkdir(parents=True, exist_ok=True)
    paths = [path for path in (args.json, args.save_path and args.save_path / "results.json") if path]
    measure = busy.measure if args.suite == "cpu-busy" else measured.measure
    for number, case in enumerate(cases, 1):
        progress.begin(number, str(case))
        record["cases"].append(measure(device, case, present, failed, args.seed, progress.tick))
        for path in paths:  # after each case: a run that is cut off keeps what it has
            report.save(record, path)
    progress.close()
    record["device_after"] = device.info()
    for path in paths:
        report.save(record, path)

    text = report.table(record)
    print(text)
    if args.save_path:
        (args.save_path / "table.txt").write_text(text + "\n")
    if args.plot:
        for path in plots.draw(record, args.save_path or pathlib.Path()):
            print(path)


if __name__ == "__main__":
    main()
