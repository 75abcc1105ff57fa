"""``python -m pyrope``: what is installed and what it can do; ``python -m pyrope selftest``: whether it works."""

import sys

import pyrope
from pyrope import _device, selftest

USAGE = "usage: python -m pyrope [selftest | --version]"


def describe() -> None:
    print(f"pyrope   {pyrope.__version__}")
    print(f"build    {pyrope.build_info()}")
    devices = _device.device_names()
    for i, name in enumerate(devices):
        print(f"device {i} {name}")
    if not devices:
        print(f"devices  none: {_device.why_not_cuda()}")
    rows = pyrope.supported()
    kinds = list(dict.fromkeys(row[2:] for row in rows))
    print(("\n" + " " * 18 + "".join(f"{layout + ' ' + angle:12}" for layout, angle in kinds)).rstrip(" "))
    for device, dtype in dict.fromkeys(row[:2] for row in rows):
        marks = ("yes" if (device, dtype, *kind) in rows else "-" for kind in kinds)
        print(f"{device:6}{dtype:12}" + "".join(f"{mark:12}" for mark in marks).rstrip())


def main(arguments: list[str]) -> int:
    if arguments == ["selftest"]:
        return selftest.main()
    if arguments in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if arguments == ["--version"]:
        print(f"pyrope {pyrope.__version__}")
        return 0
    if arguments:
        print(f"{USAGE}\nunknown argument: {' '.join(arguments)}", file=sys.stderr)
        return 2
    describe()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
