"""Holds agent.py against a real runtime: starts the binary on a free port with a data directory of its own, runs the agent's
main, and fails unless every turn completed and every turn but the first found its history computed.

    python3 examples/python/check.py --binary target/debug/holdfast
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import agent  # noqa: E402

START_S = 60
STOP_S = 60


def start(binary, directory):
    """Starts the runtime; returns the process and the address that its first line tells."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", directory]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    line = process.stdout.readline().strip()
    watchdog.cancel()
    if not line:
        sys.exit(f"{binary} ended with {process.wait()} before it told its address")
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return process, line.rsplit(" ", 1)[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the holdfast binary")
    binary = parser.parse_args().binary
    turns = []
    talk = agent.turn

    def listening(*arguments):
        ended = talk(*arguments)
        turns.append(ended)
        return ended

    agent.turn = listening
    with tempfile.TemporaryDirectory() as directory:
        process, address = start(binary, directory)
        try:
            agent.main(address)
        finally:
            process.terminate()
            try:
                status = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    check(turns)
    if status != 0:
        sys.exit(f"the runtime ended with {status} after SIGTERM")


def check(turns):
    """Fails unless the turns are what the example promises."""
    if len(turns) < 3:
        sys.exit(f"the agent took {len(turns)} turns")
    for number, turn in enumerate(turns, 1):
        state = turn.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number[turn.state].name
        if state != "TURN_STATE_COMPLETED":
            sys.exit(f"turn {number} ended as {state}: {turn}")
        if number > 1 and turn.usage.cached_tokens == 0:
            sys.exit(f"turn {number} reused nothing: {turn.usage}")
    if not any(len(turn.generations) > 1 for turn in turns):
        sys.exit("no turn called a tool")
    print(f"{len(turns)} turns completed, each but the first reused its history")


if __name__ == "__main__":
    main()
