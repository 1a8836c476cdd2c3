"""Run a command to its end and write down what it took: `launch.py FOUND.json COMMAND…`.

Its seconds, and the peak of its resident memory in bytes, which begins with that of the process
that starts it: hence this small one.
"""

import json
import os
import sys
import time

if __name__ == "__main__":
    found, *command = sys.argv[1:]
    begin = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - begin
    unit = 1 if sys.platform == "darwin" else 1024
    with open(found, "w") as file:
        json.dump({"seconds": seconds, "peak": usage.ru_maxrss * unit}, file)
    sys.exit(os.waitstatus_to_exitcode(status))
