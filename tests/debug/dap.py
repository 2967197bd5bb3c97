"""A small client of the Debug Adapter Protocol: it does to a program what an IDE does.

It speaks to debugpy's adapter over pipes, as VS Code does; the adapter starts the program and meets
its debug server on a free port of 127.0.0.1. Every wait ends, and one that ends without what it
waited for raises `HungError`; what fails gets the transcript as a note. Leaving ends the program.

Source: https://microsoft.github.io/debug-adapter-protocol/specification
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

Message = dict[str, Any]


class HungError(AssertionError):
    """Nothing came in time."""


class Breakpoint(NamedTuple):
    """A breakpoint, with a condition or a log message where it has one."""

    line: int
    condition: str | None = None
    log: str | None = None

    def to_json(self) -> Message:
        found = {"line": self.line, "condition": self.condition, "logMessage": self.log}
        return {key: value for key, value in found.items() if value is not None}


class Stop(NamedTuple):
    """Where the program has stopped.

    Attributes:
        reason: "breakpoint", "step" or "exception".
        file: the name, without its folder, of the file on top of the stack.
        line: the line there, counted from 1.
        function: the function there.
        text: what an exception says.
        thread: the thread's number.
        frame: the number of the frame on top.
    """

    reason: str
    file: str
    line: int
    function: str
    text: str
    thread: int
    frame: int


class _Adapter:
    """The adapter's process, and the messages to and from it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._sequence = 0
        self._program: int | None = None
        self._waiting: list[Message] = []
        self._has_ended = False
        self._arrived = threading.Condition()
        self.transcript: list[str] = []
        self.output: list[tuple[str, str]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "debugpy.adapter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, command: str, arguments: Message) -> int:
        """Send a request, and return its number."""
        self._sequence += 1
        message = {"seq": self._sequence, "type": "request", "command": command}
        data = json.dumps(message | {"arguments": arguments}).encode()
        self.transcript.append(f"-> {data.decode()}")
        pipe = _pipe(self._process.stdin)
        pipe.write(b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        pipe.flush()
        return self._sequence

    def response(self, sequence: int) -> Message:
        """Wait for the answer to a request."""
        return self._next(lambda m: m.get("request_seq") == sequence, f"answer to {sequence}")

    def event(self, *names: str) -> Message:
        """Wait for the first event of these."""
        return self._next(lambda m: m.get("event") in names, f"event {' or '.join(names)}")

    def end(self) -> None:
        """End the program and the adapter, whatever state they are in."""
        with contextlib.suppress(OSError, HungError):
            self.response(self.send("disconnect", {"terminateDebuggee": True}))
        with contextlib.suppress(OSError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        _pipe(self._process.stdout).close()
        if self._program is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._program, signal.SIGKILL)

    def _next(self, is_wanted: Callable[[Message], bool], what: str) -> Message:
        """Take out the first message that is wanted; the others stay."""

        def find() -> Message | None:
            return next(filter(is_wanted, self._waiting), None)

        with self._arrived:
            self._arrived.wait_for(lambda: find() or self._has_ended, self._seconds)
            found = find()
            if found is None:
                why = "came" if self._has_ended else f"in {self._seconds} s"
                raise HungError(f"no {what} {why}")
            self._waiting.remove(found)
            return found

    def _read(self) -> None:
        pipe = _pipe(self._process.stdout)
        while header := pipe.readline():
            pipe.readline()
            message = json.loads(pipe.read(int(header.split(b":")[1])))
            self.transcript.append(f"<- {json.dumps(message)}")
            with self._arrived:
                self._take(message)
                self._arrived.notify_all()
        with self._arrived:
            self._has_ended = True
            self._arrived.notify_all()

    def _take(self, message: Message) -> None:
        body = message.get("body", {})
        match message.get("event"):
            case "output":
                self.output.append((body.get("category", "console"), body["output"]))
            case "process":
                self._program = body["systemProcessId"]
            case "exited":  # its number may soon be another process's
                self._program = None
                self._waiting.append(message)
            case _:
                self._waiting.append(message)


class Debugger:
    """A program under the debugger.

    Args:
        launch: what launch.json says: `program` or `module`, `args`, `env`, `cwd`, `justMyCode`.
        breakpoints: by file.
        seconds: the longest that anything is waited for.

    Attributes:
        exit_code: the program's, once it has ended.
    """

    exit_code: int | None = None

    def __init__(
        self,
        launch: Mapping[str, Any],
        breakpoints: Mapping[Path, Sequence[Breakpoint]],
        *,
        seconds: float = 90,
    ) -> None:
        self._launch, self._breakpoints, self._seconds = launch, breakpoints, seconds
        self._adapter: _Adapter

    def __enter__(self) -> Self:
        self._adapter = _Adapter(self._seconds)
        try:
            self._begin()
        except BaseException as error:
            self.__exit__(None, error)
            raise
        return self

    def __exit__(self, _: Any, error: BaseException | None, *__: object) -> None:
        self._adapter.end()
        if error is not None:
            error.add_note("\n".join(self._adapter.transcript))

    def next_stop(self) -> Stop | None:
        """Wait until the program stops, and return where; None when it has ended instead."""
        event = self._adapter.event("stopped", "exited")
        body = event["body"]
        if event["event"] == "exited":
            self.exit_code = body["exitCode"]
            return None
        thread = body["threadId"]
        top = self._request("stackTrace", threadId=thread, levels=1)["stackFrames"][0]
        file = Path(top["source"]["path"]).name
        text = body.get("text") or ""
        return Stop(body["reason"], file, top["line"], top["name"], text, thread, top["id"])

    def go_on(self, stop: Stop) -> None:
        """Let the program run from where it has stopped."""
        self._request("continue", threadId=stop.thread)

    def step(self, stop: Stop, how: str) -> Stop:
        """Take a step, "next" (over), "stepIn" or "stepOut", and return where it ends."""
        self._request(how, threadId=stop.thread)
        reached = self.next_stop()
        assert reached is not None, "the program ended"
        return reached

    def run(self, at_stop: Callable[[Stop], object]) -> None:
        """Go on to the program's end, and call a function at each stop on the way."""
        while (stop := self.next_stop()) is not None:
            at_stop(stop)
            self.go_on(stop)

    def evaluate(self, stop: Stop, expression: str) -> str:
        """Return what a watch shows; an error is shown by its text."""
        return self._shown("evaluate", expression=expression, frameId=stop.frame, context="watch")

    def set_variable(self, stop: Stop, name: str, value: str) -> str:
        """Give a local variable another value, and return what is then shown."""
        scopes = self._request("scopes", frameId=stop.frame)["scopes"]
        local = next(s["variablesReference"] for s in scopes if s["name"] == "Locals")
        return self._shown("setVariable", variablesReference=local, name=name, value=value)

    def printed(self, category: str = "stdout") -> str:
        """Return what the program has printed."""
        return "".join(text for kind, text in self._adapter.output if kind == category)

    def _begin(self) -> None:
        self._request("initialize", adapterID="debugpy", pathFormat="path")
        # This one is answered when the program runs, that is after `configurationDone`.
        launch = self._adapter.send("launch", {**self._launch, "console": "internalConsole"})
        self._adapter.event("initialized")
        for file, points in self._breakpoints.items():
            source = {"path": str(file)}
            self._request(
                "setBreakpoints", source=source, breakpoints=[p.to_json() for p in points]
            )
        self._request("setExceptionBreakpoints", filters=["uncaught"])
        self._request("configurationDone")
        _body(self._adapter.response(launch))

    def _request(self, command: str, **arguments: Any) -> Message:
        return _body(self._adapter.response(self._adapter.send(command, arguments)))

    def _shown(self, command: str, **arguments: Any) -> str:
        response = self._adapter.response(self._adapter.send(command, arguments))
        if not response["success"]:
            return str(response["message"])
        return response["body"].get("result") or response["body"].get("value", "")


def _body(response: Message) -> Message:
    if not response["success"]:
        raise AssertionError(f"{response['command']} failed: {response.get('message')}")
    return response.get("body", {})


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
